//! What operators want of a model.

use kvwarden_policy::lifecycle::Rung;

use super::*;
use crate::protocol::{Operate, Wish};

/// Else an engine that a request has woken since would be put to sleep again.
#[actix_rt::test]
async fn wish_is_forgotten_at_the_moment_it_comes_true() {
    let node = Node::start(Setup::default()).await;
    for (wish, state) in [
        (Wish::Sleep(Rung::Cold), State::Cold),
        (Wish::Load, State::Ready),
    ] {
        let model = "m".into();
        node.model.do_send(Operate { model, wish });
        let there = node.until(|model| model.state == state).await;
        assert_eq!(there.engines[0].wish, None, "{there:?}");
    }
}
