//! A process that another has taken over from serves what it can as it is.

use super::*;
use crate::protocol::{Resign, SetTarget, Target};

#[actix_rt::test]
async fn what_waits_for_an_engine_that_serves_is_served() {
    let node = Node::start(Setup::default()).await;
    let first = permit(node.ask("t", "m")).await;
    let waiting = node.ask("t", "m");
    node.until(|state| state.waiting == 1).await;
    node.router.do_send(Resign);
    let late = node.ask("t", "m");
    drop(first);
    drop(permit(waiting).await);
    drop(permit(late).await);
}

#[actix_rt::test]
async fn what_would_need_an_engine_to_be_started_is_refused_and_may_be_tried_elsewhere() {
    let node = Node::start(Setup::default()).await;
    node.router.do_send(Resign);
    node.model.do_send(SetTarget {
        model: "m".into(),
        target: Target::Sleep(kvwarden_policy::lifecycle::SleepLevel::Cold),
    });
    node.until(|state| state.state != State::Ready).await;
    assert_eq!(refusal(node.ask("t", "m")).await, Refusal::Draining);
}
