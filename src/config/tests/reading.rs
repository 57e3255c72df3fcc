//! Types, keys and places.

use super::*;

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
    let told: Vec<_> = problems(text)
        .into_iter()
        .map(|p| (p.at.unwrap(), p.key))
        .collect();
    let expected = [
        ((1, 10), "listen"),
        ((2, 1), "log_lvl"),
        ((5, 12), "limits.max_body"),
        ((6, 17), "limits.queue_timeout"),
        ((7, 17), "limits.max_in_flight"),
        ((11, 10), "models[0].engine"),
        ((12, 17), "models[0].aliases[1]"),
        ((13, 26), "models[0].gpu_memory_utilization"),
    ];
    assert_eq!(told, expected.map(|(at, key)| (at, key.to_owned())));
}

#[test]
fn syntax_error_has_its_line_and_column() {
    let problem = problem("listen = \"127.0.0.1:8000\"\nlog_level = \n");
    assert_eq!(problem.at.map(|(line, _)| line), Some(2));
    assert!(!problem.message.contains('\n'));
}

#[test]
fn key_that_stands_twice_is_refused_at_its_second_place() {
    let problem = problem(&format!(
        "log_level = \"info\"\nlog_level = \"warn\"\n{MODEL}"
    ));
    assert_eq!(problem.at, Some((2, 1)));
}

#[test]
fn columns_count_characters_not_bytes() {
    let text = "log_level = \"info\" # ü\nlimits = { max_body = \"1ß\" }\n";
    let problem = problem(&format!("{text}{MODEL}"));
    assert_eq!(problem.at, Some((2, 23)));
}

#[test]
fn value_that_could_not_be_read_causes_no_further_problems() {
    assert_eq!(problem("models = 3").key, "models");
}

#[test]
fn table_that_is_none_does_not_hide_its_neighbours() {
    let text = "models = [3, { id = \"a\", threds = 1, engine = \"sim\" }]\n";
    let told: Vec<_> = problems(text)
        .into_iter()
        .map(|p| format!("{}: {}", p.key, p.message))
        .collect();
    let expected = [
        "models[0]: expected a table, found 3",
        "models[1].threds: `threds` is not a known key",
    ];
    assert_eq!(told, expected);
}

#[test]
fn one_line_has_one_syntax_error() {
    let places: Vec<_> = problems("x = = 3\ny = 4 5\n")
        .into_iter()
        .map(|p| p.at.unwrap().0)
        .collect();
    assert_eq!(places, [1, 2]);
}

#[test]
fn file_of_nothing_but_defaults_has_them() {
    let config = load(MODEL);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.limits.max_body, 32 << 20);
    assert_eq!(config.log_level, "info");
    assert_eq!(
        config.auth.tenant_header,
        crate::config::TenantHeader::Loopback
    );
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
        let path = Path::new(if yaml { "node.yaml" } else { "node.toml" });
        if let Err(error) = Config::load_str(&text, path, &Environment::new(), &Overrides::default()) {
            let _ = error.render();
        }
    }
}
