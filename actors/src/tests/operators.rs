//! What operators want of a model.

use kvwarden_policy::lifecycle::Rung;

use super::*;
use crate::protocol::{Grant, Operate, Wish};

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

#[actix_rt::test]
async fn model_that_was_put_away_is_not_loaded_before_somebody_asks() {
    let node = Node::start(Setup::default()).await;
    let away = Wish::Sleep(Rung::Cold);
    node.model.do_send(Operate {
        model: "m".into(),
        wish: away,
    });
    node.until(|model| model.state == State::Cold).await;
    node.model.do_send(Grant {
        engine: "m".into(),
        order: 1000,
        devices: Vec::new(),
        is_prefetch: true,
        inherited: None,
    });
    let starts = node.state().await.record.starts;
    assert_eq!(node.state().await.state, State::Cold);
    drop(permit(node.ask("t", "m")).await);
    assert_eq!(node.state().await.record.starts, starts + 1);
}
