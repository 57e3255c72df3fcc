//! L5: two models take turns where one fits, and what kvwarden holds stays the same.

use std::time::Duration;

use kvwarden_integration::{Footprint, Server, eventually_within};
use serde_json::json;

use crate::{CHAT, growth, rounds};

/// Each takes 8.5 MiB, and is stopped when it makes room: another process and another port each time.
const CONFIG: &str = r#"
[gpu]
memory = "12MiB"
max_wait = "50ms"

[[models]]
id = "a"
engine = "sim"
preset = "tiny"
sleep = []

[[models]]
id = "b"
engine = "sim"
preset = "tiny"
sleep = []
"#;

/// What connections that nobody uses any more may take to go.
const IDLE: Duration = Duration::from_secs(60);

#[test]
fn what_is_held_does_not_grow_with_swaps() {
    let count = rounds(6, 500);
    let server = Server::start(CONFIG);
    let ask_both = || {
        for model in ["a", "b"] {
            let ask = json!({
                "model": model, "max_tokens": 2,
                "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
            });
            let _ = server.client().post(CHAT, &ask).expect(200);
        }
    };
    (0..3).for_each(|_| ask_both());
    let warm = Footprint::of(server.pid());
    (0..count / 2).for_each(|_| ask_both());
    let last = Footprint::of(server.pid());
    let idle = eventually_within(IDLE, "what is not used to be closed", || {
        let now = Footprint::of(server.pid());
        (now.descriptors <= warm.descriptors).then_some(now)
    });
    println!(
        "L5: {count} swaps: {} KiB and {} descriptors warm, {} KiB and {} at last ({:+.1} %), {} idle",
        warm.resident,
        warm.descriptors,
        last.resident,
        last.descriptors,
        growth(warm, last),
        idle.descriptors
    );
}
