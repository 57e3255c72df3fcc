//! Tenants, their groups and keys, and who is let in.

use kvwarden_policy::{scheduling::Group, tier::Tiers};

use super::*;
use crate::config::{KeyHash, TenantHeader};

#[test]
fn tenant_inherits_what_it_does_not_say() {
    let text = "
[tenant_defaults]
rate_limit_rpm = 60
priority = 3
max_queued_requests = 5
max_queued_bytes = \"1MiB\"
[tenants.a]
rate_limit_rpm = 5
rate_limit_burst = 5
max_queued_bytes = \"2MiB\"
tokens_per_day = 1000
[tenants.b]
";
    let [a, b] = &load(&format!("{text}{MODEL}")).tenants[..] else {
        panic!("two tenants");
    };
    assert_eq!((a.limits.requests, a.limits.priority), (Some((5, 5)), 3));
    assert_eq!((b.limits.requests, b.limits.priority), (Some((60, 60)), 3));
    assert_eq!(a.limits.queued.requests, 5);
    assert_eq!(a.limits.queued.bytes, 2 << 20);
    assert_eq!(b.limits.queued.bytes, 1 << 20);
    assert_eq!(a.limits.tokens_per_day, Some(1000));
    load(&format!(
        "tenant_defaults.rate_limit_rpm = 60\ntenants.a.rate_limit_burst = 5\n{MODEL}"
    ));
}

#[test]
fn key_hash_survives_being_written() {
    let hash = KeyHash::of("abc");
    let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hash.to_string(), text);
    assert_eq!(KeyHash::parse(text), Some(hash));
    assert_eq!(KeyHash::parse(&text.to_uppercase()), None);
}

#[test]
fn one_key_cannot_mean_two_tenants() {
    let keys = format!("api_keys = [\"{}\"]", KeyHash::of("k"));
    let text = format!("[tenants.a]\n{keys}\n[tenants.b]\n{keys}\n{MODEL}");
    assert_eq!(
        told(&text).0,
        "tenants.b.api_keys[0]: tenant `a` has the same key"
    );
}

#[test]
fn what_may_be_a_key_is_never_repeated() {
    let secret = "sk-live-1234567890";
    for table in ["tenants.a]\napi_keys", "auth]\nadmin_keys"] {
        let error = try_load(&format!("[{table} = [\n  \"{secret}\",\n]\n{MODEL}")).unwrap_err();
        let problem = &error.problems[0];
        assert_eq!(problem.at, Some((3, 3)));
        assert!(problem.help.as_ref().unwrap().contains("kvwarden key"));
        assert!(!error.render().contains(secret), "{}", error.render());
        assert!(!format!("{error:?}").contains(secret));
        let no_list = try_load(&format!("[{table} = \"{secret}\"\n{MODEL}")).unwrap_err();
        assert_eq!(no_list.problems[0].message, "expected a list");
        assert!(!format!("{no_list:?}").contains(secret));
    }
}

#[test]
fn keys_are_needed_where_other_machines_reach() {
    for listen in ["127.0.0.1:8000", "[::1]:8000", "127.1.2.3:8000"] {
        load(&format!("listen = \"{listen}\"\n{MODEL}"));
    }
    let keys = format!("api_keys = [\"{}\"]", KeyHash::of("k"));
    load(&format!(
        "listen = \"0.0.0.0:8000\"\n[tenants.a]\n{keys}\n{MODEL}"
    ));
}

#[test]
fn open_address_that_believes_the_header_is_warned_about() {
    let text = format!("listen = \"0.0.0.0:8000\"\nauth.tenant_header = \"always\"\n{MODEL}");
    let Loaded {
        config, warnings, ..
    } = try_load(&text).unwrap();
    assert_eq!(config.auth.tenant_header, TenantHeader::Always);
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    let place = (warning.key.as_str(), warning.at);
    assert_eq!(place, ("auth.tenant_header", Some((2, 22))));
    assert!(warning.message.contains("X-Tenant-ID"));
}

#[test]
fn tenant_names_fit_into_headers_and_metrics() {
    let long = "x".repeat(65);
    let (told, _) = told(&format!("[tenants.{long}]\n{MODEL}"));
    assert!(told.contains("cannot name a tenant"), "{told}");
    load(&format!("[tenants.\"org:team@x/y_z.1-2\"]\n{MODEL}"));
}

#[test]
fn tenant_belongs_to_its_group_with_the_groups_weight() {
    let text = "groups.org.weight = 3\ntenants.a = { group = \"org\", weight = 2 }\ntenants.b = {}";
    let tenants = load(&format!("{text}\n{MODEL}")).tenants;
    let name = "group org".into();
    assert_eq!(tenants[0].limits.group, Some(Group { name, weight: 3 }));
    assert_eq!(tenants[0].limits.weight, 2);
    assert_eq!(tenants[1].limits.group, None);
}

#[test]
fn unknown_group_is_told_at_its_place_with_the_likely_one() {
    let used = "[groups.research]\n[tenants.b]\ngroup = \"research\"\n";
    let problem = problem(&format!("{used}[tenants.a]\ngroup = \"reserach\"\n{MODEL}"));
    assert_eq!(problem.key.as_str(), "tenants.a.group");
    assert_eq!(problem.at, Some((5, 9)));
    assert_eq!(problem.message, "there is no group \"reserach\"");
    assert!(
        problem
            .help
            .unwrap()
            .starts_with("did you mean `research`?")
    );
}

#[test]
fn group_that_nobody_belongs_to_is_warned_about() {
    let warnings = try_load(&format!("[groups.org]\n{MODEL}"))
        .unwrap()
        .warnings;
    assert_eq!(warnings[0].key, "groups.org");
    assert_eq!(warnings[0].message, "no tenant belongs to this group");
}

#[test]
fn service_tiers_are_a_list_of_two_words() {
    let tiers = |list: &str| {
        let text = format!("[tenant_defaults]\nservice_tiers = {list}\n[tenants.a]\n{MODEL}");
        let Tiers { flex, priority } = load(&text).tenants[0].limits.tiers;
        (flex, priority)
    };
    assert_eq!(tiers(r#"["flex", "priority"]"#), (true, true));
    assert_eq!(tiers("[]"), (false, false));
    assert_eq!(load(MODEL).tenant_defaults.tiers, Tiers::default());
}
