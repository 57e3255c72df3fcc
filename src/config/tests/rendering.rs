//! How problems look.

use super::*;

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn problem_is_shown_under_its_line_with_help() {
    let error =
        try_load("# ü\nlisten = 8000\n[[models]]\nid = \"m\"\nengin = \"sim\"\n").unwrap_err();
    let expected = r#"error: listen: expected text in quotes, found 8000
 --> node.toml:2:10
  |
2 | listen = 8000
  |          ^^^^

error: models[0].engin: `engin` is not a known key
 --> node.toml:5:1
  |
5 | engin = "sim"
  | ^^^^^
  |
  = help: did you mean `engine`?

"#;
    assert_eq!(plain(&error.render()), expected);
    assert_eq!(error.to_string(), "node.toml has 2 problems");
}

#[test]
fn problem_of_a_whole_file_names_the_file() {
    let error = try_load("").unwrap_err();
    let shown = plain(&error.render());
    let start =
        "error: models: there is no model to serve\n--> node.toml\n = help: add a [[models]]";
    assert!(shown.starts_with(start), "{shown}");
}

#[test]
fn secrets_are_blotted_out_of_excerpts() {
    let text = "[[models]]\nid = \"m\"\nengine = \"sim\"\nenv = { HF_TOKEN = \"hf_secret\" }\n";
    // A problem on the same line, so that the line is shown.
    let error = try_load(&text.replace(" }", ", X = 3 }")).unwrap_err();
    let shown = plain(&error.render());
    assert!(
        shown.contains("HF_TOKEN = ***") && !shown.contains("hf_secret"),
        "{shown}"
    );
}

#[test]
fn secrets_are_blotted_out_around_a_syntax_error() {
    let error = try_load("tenants.a = { api_keys = [\"sk-secret\"], priority = }\n").unwrap_err();
    let shown = plain(&error.render());
    assert!(
        shown.contains("priority = }") && !shown.contains("sk-secret"),
        "{shown}"
    );
}
