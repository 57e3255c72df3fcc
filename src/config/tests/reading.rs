//! Types, keys and places.

use super::*;
use crate::config::TenantHeader;

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let text = r#"listen = 8000
log_lvl = "info"

[limits]
max_body = 32
queue_timeout = "soon"
max_in_flight = -1

[[models]]
id = "m"
engine = "vlm"
aliases = ["a", 3]
gpu_memory_utilization = 2.0
"#;
    let expected = [
        "1:10 listen",
        "2:1 log_lvl",
        "5:12 limits.max_body",
        "6:17 limits.queue_timeout",
        "7:17 limits.max_in_flight",
        "11:10 models[0].engine",
        "12:17 models[0].aliases[1]",
        "13:26 models[0].gpu_memory_utilization",
    ];
    assert_eq!(places(try_load(text)), expected);
}

#[test]
fn problems_stand_where_their_author_looks() {
    for (text, expected) in [
        // The second of two equal keys is the one too many.
        ("log_level = \"info\"\nlog_level = \"warn\"\n", "2:1 "),
        ("log_level = \"info\"\nlimits = \n", "2:10 "),
        // Columns count characters, not bytes.
        (
            "limits = { max_body = \"1ß\" } # ü\n",
            "1:23 limits.max_body",
        ),
        (
            "# ü\nlimits = { broken_pause = \"ß\", x = 1 }\n",
            "2:27 limits.broken_pause, 2:32 limits.x",
        ),
        ("[[models]]\nengine = \"sim\"\n", "1:1 models[0].id"),
        (
            "[[models]]\nmodel_id = \"a b\"\nengine = \"sim\"\n",
            "2:12 models[0].model_id",
        ),
        (MODEL, "5:6 models[1].id"),
    ] {
        let found = places(try_load(&format!("{text}{MODEL}")));
        assert_eq!(found.join(", "), expected, "{text}");
    }
    // One line has one mistake, however often the parser trips over it.
    assert_eq!(places(try_load("x = = 3\ny = 4 5\n")), ["1:5 ", "2:5 "]);
    let malformed = problem("log_level = \n");
    assert!(!malformed.message.contains('\n'), "{malformed:?}");
}

#[test]
fn value_that_could_not_be_read_causes_no_further_problems() {
    assert_eq!(problem("models = 3").key, "models");
}

#[test]
fn table_that_is_none_does_not_hide_its_neighbours() {
    let text = "models = [3, { id = \"a\", threds = 1, engine = \"sim\" }]\n";
    assert_eq!(
        places(try_load(text)),
        ["1:11 models[0]", "1:26 models[1].threds"]
    );
}

#[test]
fn file_of_nothing_but_defaults_has_them() {
    let config = load(MODEL);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.limits.max_body, 32 << 20);
    assert_eq!(config.log_level, "info");
    assert_eq!(config.auth.tenant_header, TenantHeader::Loopback);
}

#[test]
fn one_body_always_fits_what_may_be_held() {
    let limits = load(&format!("[limits]\nmax_body = \"4GiB\"\n{MODEL}")).limits;
    assert!(limits.max_bodies >= limits.max_body);
    assert!(limits.max_bodies_per_tenant >= limits.max_body);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(text: String, yaml: bool) {
        let path = if yaml { "node.yaml" } else { "node.toml" };
        let _ = load_at(path, &text, &[]).map_err(|error| error.render());
    }
}
