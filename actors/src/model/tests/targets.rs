//! What an operator wants of a model, repeated until it is so.

use super::*;

fn wanted(state: &ModelState) -> Option<Target> {
    state.engines[0].target
}

#[actix_rt::test]
async fn engine_that_starts_goes_to_sleep_once_it_serves_if_an_operator_wants_it() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    let target = Target::Sleep(SleepLevel::L1);
    rig.target(target);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(wanted(&rig.state().await), Some(target));
    rig.ready("m", 1);
    rig.hears("m/1 demote from Ready to L1").await;
    rig.news("m", 1, News::Demoted);
    let state = rig.state().await;
    assert_eq!(
        state.state,
        State::Asleep {
            level: SleepLevel::L1
        }
    );
    assert_eq!(wanted(&state), None);
}

#[actix_rt::test]
async fn target_that_was_reached_does_not_undo_what_a_request_wants_later() {
    let mut rig = Rig::serving(params()).await;
    rig.target(Target::Sleep(SleepLevel::L1));
    rig.hears("m/1 demote from Ready to L1").await;
    rig.news("m", 1, News::Demoted);
    rig.state().await;
    let answer = rig.ask();
    rig.grant("m");
    rig.hears("m/1 wake from L1").await;
    rig.news("m", 1, News::Woken);
    rig.hears("m/1 verify").await;
    rig.news("m", 1, News::Verified);
    drop(permit(answer).await);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.state, State::Ready);
}

#[actix_rt::test]
async fn newest_target_replaces_the_one_before() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.target(Target::Sleep(SleepLevel::L1));
    rig.target(Target::Load);
    rig.ready("m", 1);
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!((state.state, wanted(&state)), (State::Ready, None));
}

#[actix_rt::test]
async fn operator_waits_for_a_place_like_a_request() {
    let mut rig = Rig::serving(params()).await;
    rig.sleep(SleepLevel::L1).await;
    rig.target(Target::Load);
    assert_eq!(
        rig.demand("m").await.state,
        State::Waiting {
            from: SleepLevel::L1
        }
    );
    pass(2 * SECOND).await;
    let demand = rig.demand("m").await;
    assert!(is_about(demand.oldest_wait, 2 * SECOND), "{demand:?}");
    assert_eq!(demand.queued, 0);
    rig.grant("m");
    rig.hears("m/1 wake from L1").await;
}

#[actix_rt::test]
async fn engine_that_is_being_stopped_is_loaded_again_at_its_end() {
    let mut rig = Rig::serving(params()).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.target(Target::Load);
    rig.exited(1, FailureClass::Stopped);
    let waiting = State::Waiting {
        from: SleepLevel::Cold,
    };
    assert_eq!(
        rig.demand("m").await.state,
        waiting,
        "at once, not at the next tick"
    );
    rig.start("m", 2).await;
    assert_eq!(wanted(&rig.state().await), None);
}

#[actix_rt::test]
async fn model_that_an_operator_put_away_is_not_loaded_ahead_until_somebody_asks() {
    let mut rig = Rig::serving(params()).await;
    rig.target(Target::Sleep(SleepLevel::Cold));
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    assert!(!rig.demand("m").await.may_prefetch);
    rig.prefetch("m");
    rig.hears_nothing_for(SECOND).await;
    drop(rig.ask());
    rig.until_it_waits("m").await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.target(Target::Pin(false));
    rig.start("m", 2).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/2 stop").await;
    rig.exited(2, FailureClass::Stopped);
    assert!(rig.demand("m").await.may_prefetch);
}

#[actix_rt::test]
async fn pin_of_a_model_that_is_not_here_yet_counts_once_it_is() {
    let mut rig = Rig::new(params());
    rig.target(Target::Pin(true));
    rig.prepare("m", 1, "v1");
    rig.hears("m registers").await;
    rig.start("m", 1).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.state, State::Ready);
}

#[actix_rt::test]
async fn target_set_before_a_model_is_here_decides_instead_of_its_configuration() {
    let mut rig = Rig::new(params());
    rig.target(Target::Sleep(SleepLevel::Cold));
    rig.prepare("m", 1, "v1");
    rig.hears("m registers").await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
    rig.hears_nothing_for(SECOND).await;
}

#[actix_rt::test]
async fn target_set_while_an_engine_drains_or_wakes_is_kept() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    rig.target(Target::Sleep(SleepLevel::L1));
    assert_eq!(
        rig.state().await.state,
        State::Draining { to: SleepLevel::L1 }
    );
    rig.target(Target::Load);
    drop(running);
    rig.hears("m/1 demote from Ready to L1").await;
    rig.news("m", 1, News::Demoted);
    assert_eq!(
        rig.demand("m").await.state,
        State::Waiting {
            from: SleepLevel::L1
        }
    );
    rig.grant("m");
    rig.hears("m/1 wake from L1").await;
    rig.target(Target::Sleep(SleepLevel::L2));
    rig.news("m", 1, News::Woken);
    rig.hears("m/1 verify").await;
    rig.news("m", 1, News::Verified);
    rig.hears("m/1 demote from Ready to L2").await;
}
