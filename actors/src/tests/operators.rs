//! What operators want of a model.

use kvwarden_policy::lifecycle::SleepLevel;

use super::*;
use crate::protocol::{Grant, SetTarget, Target};

/// Else an engine that a request has woken since would be put to sleep again.
#[actix_rt::test]
async fn target_is_forgotten_at_the_moment_it_is_reached() {
    let node = Node::start(Setup::default()).await;
    for (target, state) in [
        (Target::Sleep(SleepLevel::Cold), State::Cold),
        (Target::Load, State::Ready),
    ] {
        let model = "m".into();
        node.model.do_send(SetTarget { model, target });
        let there = node.until(|model| model.state == state).await;
        assert_eq!(there.engines[0].target, None, "{there:?}");
    }
}

#[actix_rt::test]
async fn model_that_was_put_away_is_not_loaded_before_somebody_asks() {
    let node = Node::start(Setup::default()).await;
    let away = Target::Sleep(SleepLevel::Cold);
    node.model.do_send(SetTarget {
        model: "m".into(),
        target: away,
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
