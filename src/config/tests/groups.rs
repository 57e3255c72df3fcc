//! Groups, and what else a tenant may be given.

use super::*;
use crate::config::GroupConfig;
use kvwarden_policy::tier::Tiers;

#[test]
fn tenant_belongs_to_its_group_with_the_groups_weight() {
    let text = format!(
        "[groups.org]\nweight = 3\n[tenants.a]\ngroup = \"org\"\nweight = 2\n[tenants.b]\n{MODEL}"
    );
    let tenants = load(&text).tenants;
    let org = GroupConfig {
        name: "org".to_owned(),
        weight: 3,
    };
    assert_eq!(
        (&tenants[0].group, tenants[0].limits.weight),
        (&Some(org), 2)
    );
    assert_eq!(tenants[1].group, None);
}

#[test]
fn unknown_group_is_told_the_likely_one() {
    let text = format!(
        "[groups.research]\n[tenants.a]\ngroup = \"reserach\"\n[tenants.b]\ngroup = \"research\"\n{MODEL}"
    );
    let problem = problem(&text);
    assert_eq!(
        (problem.key.as_str(), problem.at),
        ("tenants.a.group", Some((3, 9)))
    );
    assert_eq!(problem.message, "there is no group \"reserach\"");
    assert!(
        problem
            .help
            .unwrap()
            .starts_with("did you mean `research`?")
    );
    let (_, help) = told(&format!("[tenants.a]\ngroup = \"org\"\n{MODEL}"));
    assert_eq!(help, "add a table [groups.org]");
}

#[test]
fn group_that_nobody_belongs_to_is_warned_about() {
    let loaded = try_load(&format!("[groups.org]\n{MODEL}")).unwrap();
    assert_eq!(loaded.warnings[0].key, "groups.org");
    assert_eq!(
        loaded.warnings[0].message,
        "no tenant belongs to this group"
    );
}

#[test]
fn group_of_weight_zero_is_refused() {
    let (told, _) = told(&format!(
        "[groups.org]\nweight = 0\n[tenants.a]\ngroup = \"org\"\n{MODEL}"
    ));
    assert_eq!(told, "groups.org.weight: has to be more than zero");
}

#[test]
fn service_tiers_are_a_list_of_two_words() {
    let tiers = |list: &str| {
        let text = format!("[tenant_defaults]\nservice_tiers = {list}\n[tenants.a]\n{MODEL}");
        load(&text).tenants[0].limits.service_tiers
    };
    let both = Tiers {
        flex: true,
        priority: true,
    };
    let neither = Tiers {
        flex: false,
        priority: false,
    };
    assert_eq!(tiers(r#"["flex", "priority"]"#), both);
    assert_eq!(tiers("[]"), neither);
    assert_eq!(load(MODEL).tenant_defaults.service_tiers, Tiers::default());
    let text = format!("[tenants.a]\nservice_tiers = [\"priorty\"]\n{MODEL}");
    let (told, help) = told(&text);
    assert!(told.contains("`priorty` is not known here"), "{told}");
    assert!(help.starts_with("did you mean `priority`?"), "{help}");
}

#[test]
fn caps_on_what_waits_are_each_tenants_own() {
    let text = format!(
        "[tenant_defaults]\nmax_queued_requests = 5\nmax_queued_bytes = \"1MiB\"\n[tenants.a]\nmax_queued_bytes = \"2MiB\"\ntokens_per_day = 1000\n{MODEL}"
    );
    let limits = &load(&text).tenants[0].limits;
    assert_eq!(limits.max_queued_requests, Some(5));
    assert_eq!(limits.max_queued_bytes, Some(2 << 20));
    assert_eq!(limits.tokens_per_day, Some(1000));
}
