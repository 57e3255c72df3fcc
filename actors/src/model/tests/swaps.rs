//! How an engine gives memory back and takes it again.

use super::*;

#[actix_rt::test]
async fn reclaimed_engine_lets_its_requests_end_and_takes_no_new_ones() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    rig.reclaim("m", SleepLevel::Cold);
    let demand = rig.demand("m").await;
    assert_eq!(
        demand.state,
        State::Draining {
            to: SleepLevel::Cold
        }
    );
    assert_eq!((demand.order, demand.in_flight), (rig.orders, 1));
    let mut waiting = rig.ask();
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears_nothing_for(SECOND).await;
    drop(running);
    rig.hears("m/1 stop").await;
    assert!(waiting.try_recv().is_err());
    let record = rig.state().await.record;
    assert_eq!((record.reclaimed, record.failures), (1, 0));
    rig.exited(1, FailureClass::Stopped);
    rig.until_it_waits("m").await;
    rig.start("m", 2).await;
    assert_eq!(generation(&permit(waiting).await), 2);
    assert_eq!(rig.state().await.record.failures, 0);
}

#[actix_rt::test]
async fn engine_sleeps_wakes_for_a_request_and_serves_once_it_has_proved_itself() {
    let mut rig = Rig::serving(params()).await;
    rig.sleep(SleepLevel::L1).await;
    rig.hears_nothing_for(SECOND).await;
    let mut answer = rig.ask();
    let demand = rig.demand("m").await;
    assert_eq!(
        demand.state,
        State::Waiting {
            from: SleepLevel::L1
        }
    );
    rig.grant("m");
    rig.hears("m/1 wake from L1").await;
    rig.news("m", 1, News::Woken);
    rig.hears("m/1 verify").await;
    assert!(answer.try_recv().is_err());
    rig.news("m", 1, News::Verified);
    rig.state().await;
    drop(answer.try_recv().unwrap().unwrap());
    let record = rig.state().await.record;
    assert_eq!((record.starts, record.reclaimed), (1, 1));
}

#[actix_rt::test]
async fn sleeping_engine_goes_deeper_when_it_is_reclaimed_again_and_not_shallower() {
    let mut rig = Rig::serving(params()).await;
    rig.sleep(SleepLevel::L1).await;
    rig.reclaim("m", SleepLevel::Parked);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.record.reclaimed, 1);
    rig.reclaim("m", SleepLevel::L2);
    rig.hears("m/1 demote from L1 to L2").await;
    rig.news("m", 1, News::Demoted);
    let state = rig.state().await;
    assert_eq!(
        state.state,
        State::Asleep {
            level: SleepLevel::L2
        }
    );
    assert_eq!(state.record.reclaimed, 2);
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
}

#[actix_rt::test]
async fn engine_that_does_not_give_its_memory_back_is_stopped_and_never_sent_there_again() {
    let mut rig = Rig::serving(params()).await;
    rig.reclaim("m", SleepLevel::L1);
    rig.hears("m/1 demote from Ready to L1").await;
    let reason = "the memory stays taken".to_owned();
    rig.news("m", 1, News::DemoteFailed { reason });
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    let state = rig.state().await;
    assert_eq!((state.state, state.record.failures), (State::Cold, 0));
    assert_eq!(state.record.note.unwrap(), "the memory stays taken");
    assert!(!rig.demand("m").await.levels.contains(SleepLevel::L1));
    assert!(state.engines[0].barred.contains(SleepLevel::L1));
}

#[actix_rt::test]
async fn engine_that_wakes_badly_is_stopped_and_the_request_waits_for_a_cold_start() {
    let reason = || "gibberish".to_owned();
    let not_woken = [News::WakeFailed { reason: reason() }].into();
    let not_verified = vec![News::Woken, News::VerifyFailed { reason: reason() }];
    for bad in [not_woken, not_verified] {
        let mut rig = Rig::serving(params()).await;
        rig.sleep(SleepLevel::L1).await;
        let answer = rig.ask();
        rig.grant("m");
        rig.hears("m/1 wake from L1").await;
        for what in bad {
            if matches!(what, News::VerifyFailed { .. }) {
                rig.hears("m/1 verify").await;
            }
            rig.news("m", 1, what);
            rig.state().await;
        }
        rig.hears("m/1 stop").await;
        assert_eq!(rig.state().await.record.note.unwrap(), "gibberish");
        rig.exited(1, FailureClass::Stopped);
        rig.until_it_waits("m").await;
        rig.start("m", 2).await;
        assert_eq!(generation(&permit(answer).await), 2);
    }
}

#[actix_rt::test]
async fn pinned_engine_stays_and_its_order_counts_as_dealt_with() {
    let mut rig = Rig::serving(Params {
        is_pinned: true,
        ..params()
    })
    .await;
    rig.reclaim("m", SleepLevel::Cold);
    let demand = rig.demand("m").await;
    assert_eq!((demand.state, demand.order), (State::Ready, rig.orders));
    assert!(demand.is_pinned);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.record.reclaimed, 0);
    rig.target(Target::Pin(false));
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
}

#[actix_rt::test]
async fn planner_hears_how_long_nobody_has_wanted_a_model_and_how_long_its_requests_take() {
    let mut rig = Rig::serving(Params {
        idle_ttl: Some(BROKEN),
        ..params()
    })
    .await;
    pass(10 * SECOND).await;
    let demand = rig.demand("m").await;
    assert_eq!((demand.asked_at, demand.idle_ttl), (None, Some(BROKEN)));
    assert!(is_about(demand.idle_for, 10 * SECOND), "{demand:?}");
    let running = permit(rig.ask()).await;
    let asked = Instant::now();
    pass(13 * SECOND).await;
    let demand = rig.demand("m").await;
    assert!(is_about(demand.idle_for, 13 * SECOND), "{demand:?}");
    drop(running);
    pass(SECOND).await;
    let demand = rig.demand("m").await;
    assert_eq!(demand.asked_at, Some(asked.into_std()));
    assert!(is_about(demand.idle_for, SECOND), "{demand:?}");
    // An eighth of 13 s, and the rest of the 5 s that are assumed.
    assert!(is_about(demand.drain, 6 * SECOND), "{demand:?}");
    assert!(demand.rate > 0.0);
    rig.hears_nothing_for(SECOND).await;
}
