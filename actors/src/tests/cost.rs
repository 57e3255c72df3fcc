//! What one request costs the actors, in instructions: the difference of the two runs over 2,000.
//!
//! ```sh
//! cargo test --release -p kvwarden-actors --lib --no-run
//! valgrind --tool=callgrind target/release/deps/kvwarden_actors-… three_thousand_requests --ignored
//! ```

use kvwarden_policy::cost::Usage;

use super::{Node, Setup, permit};

const SIDE_BY_SIDE: usize = 32;

async fn requests(count: usize) {
    let node = Node::start(Setup {
        max_running: SIDE_BY_SIDE,
        max_waiting: SIDE_BY_SIDE,
        ..Setup::default()
    })
    .await;
    for _ in 0..count / SIDE_BY_SIDE {
        let answers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| node.ask_whole("t")).collect();
        for answer in answers {
            let mut permit = permit(answer).await;
            permit.first_token();
            permit.report(Usage {
                prompt_tokens: 100,
                cached_tokens: 0,
                completion_tokens: 10,
            });
        }
    }
}

#[actix_rt::test]
#[ignore = "asserts nothing: callgrind counts"]
async fn thousand_requests() {
    requests(1000).await;
}

#[actix_rt::test]
#[ignore = "asserts nothing: callgrind counts"]
async fn three_thousand_requests() {
    requests(3000).await;
}
