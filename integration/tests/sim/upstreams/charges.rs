//! What is charged, however a server tells it.

use kvwarden_integration::{Part, Says, eventually};
use serde_json::{Value, json};

use super::{DONE, Odd, ask, event, odd, role, text};
use crate::{CHAT, COMPLETIONS, with};

/// An event of a choice that ends with it, and its usage.
fn last(choice: u32, prompt: u64, output: u64) -> String {
    event(
        &json!({ "choices": [{ "index": choice, "text": "a", "finish_reason": "stop" }],
        "usage": { "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output } }),
    )
}

/// Usage that comes by itself.
fn alone(prompt: u64, output: u64) -> String {
    event(&json!({ "choices": [],
        "usage": { "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output } }))
}

fn stream(odd: &Odd, path: &str, ask: Value, tenant: &str) {
    let client = odd.server.client().tenant(tenant);
    let _ = client.post(path, &with(ask, "stream", true)).expect(200);
}

#[test]
fn prompts_and_choices_are_charged_in_full_where_each_tells_its_own() {
    let done = || DONE.to_owned();
    let odd = odd(vec![
        (
            "prompts",
            Says::events([
                last(0, 301, 2),
                last(1, 300, 2),
                last(2, 10, 2),
                last(3, 301, 2),
                done(),
            ]),
        ),
        (
            "choices",
            Says::events([last(0, 9, 6), last(2, 9, 4), last(1, 9, 5), done()]),
        ),
        (
            "both",
            Says::events([
                last(0, 9, 1),
                last(1, 9, 1),
                last(2, 5, 1),
                last(3, 5, 1),
                done(),
            ]),
        ),
        (
            "behind",
            Says::events([text("a"), alone(9, 6), alone(9, 6), alone(9, 6), done()]),
        ),
    ]);
    let completion = |model: &str, prompts: usize, n: u32| json!({ "model": model, "prompt": vec!["x"; prompts], "n": n });
    stream(&odd, COMPLETIONS, completion("prompts", 4, 1), "prompts");
    assert_eq!(odd.used("prompts"), (912, 8));
    stream(&odd, COMPLETIONS, completion("choices", 1, 3), "choices");
    assert_eq!(odd.used("choices"), (9, 15));
    stream(&odd, COMPLETIONS, completion("both", 2, 2), "both");
    assert_eq!(odd.used("both"), (14, 4));
    stream(&odd, CHAT, with(ask("behind"), "n", 3), "behind");
    assert_eq!(odd.used("behind"), (9, 18));
}

#[test]
fn one_sum_is_charged_once_however_often_it_is_told() {
    let done = || DONE.to_owned();
    let so_far = |output: u64| {
        event(
            &json!({ "choices": [{ "index": 0, "delta": { "content": "a" } }],
            "usage": { "prompt_tokens": 9, "completion_tokens": output } }),
        )
    };
    let odd = odd(vec![
        (
            "continuous",
            Says::events([so_far(1), so_far(2), so_far(3), alone(9, 3), done()]),
        ),
        ("no-sum", Says::events([so_far(1), so_far(2), done()])),
        (
            "twice",
            Says::events([text("a"), alone(9, 3), alone(9, 3), done()]),
        ),
        ("of-all", Says::events([text("a"), alone(9, 12), done()])),
    ]);
    for (model, n, expected) in [
        ("continuous", 1, (9, 3)),
        ("no-sum", 1, (9, 2)),
        ("twice", 1, (9, 3)),
        ("of-all", 4, (9, 12)),
    ] {
        stream(&odd, CHAT, with(ask(model), "n", n), model);
        assert_eq!(odd.used(model), expected, "{model}");
    }
}

#[test]
fn cut_answer_is_charged_by_its_text_and_not_by_its_events() {
    let much = text(&"word ".repeat(400));
    let odd = odd(vec![
        (
            "one-event",
            Says::events([role(), much.clone()]).with(2, Part::Wait),
        ),
        ("stops", Says::events([role(), much.clone()])),
        (
            "unread",
            Says::events([role(), text("a"), text("b")]).with(3, Part::Wait),
        ),
    ]);
    let hang_up = |model: &str, until: &str| {
        let ask = with(ask(model), "stream", true);
        let mut answer = odd.server.exchange(CHAT, model, &ask).answer();
        let _ = answer.until(until);
    };
    hang_up("one-event", "word");
    eventually("2,000 bytes to be charged", || {
        (odd.used("one-event").1 == 500).then_some(())
    });
    stream(&odd, CHAT, ask("stops"), "stops");
    assert_eq!(odd.used("stops").1, 500);
    hang_up("unread", "\"b\"");
    eventually("two tokens to be charged", || {
        (odd.used("unread").1 == 2).then_some(())
    });
}
