//! How an engine comes to serve: a place, a start, an adoption, a load ahead of need.

use super::*;
use crate::engine::saved_kv::Kept;

#[actix_rt::test]
async fn prepared_model_asks_for_a_place_and_starts_once_where_it_gets_one() {
    let mut rig = Rig::prepared(params()).await;
    let waiting = State::Waiting {
        from: SleepLevel::Cold,
    };
    assert_eq!(rig.demand("m").await.state, waiting);
    rig.hears_nothing_for(SECOND).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    assert_eq!(rig.demand("m").await.order, 1);
    rig.grant("m");
    assert_eq!(
        rig.demand("m").await.order,
        2,
        "what is done is not asked for again"
    );
    rig.ready("m", 1);
    let state = rig.state().await;
    assert_eq!((state.state, state.record.starts), (State::Ready, 1));
    assert_eq!(state.engines[0].devices, [DeviceId::from("gpu0")]);
    rig.hears_nothing_for(SECOND).await;
}

#[actix_rt::test]
async fn engine_registers_with_what_its_moves_were_measured_to_cost() {
    let mut params = params();
    params.engines[0].costs = Some(Costs::default());
    let mut rig = Rig::new(params);
    rig.prepare("m", 1, "v1");
    rig.hears("m registers with costs").await;
}

#[actix_rt::test]
async fn model_that_nobody_asked_for_stays_cold_whatever_it_is_granted() {
    let mut rig = Rig::prepared(lazy()).await;
    rig.grant("m");
    let demand = rig.demand("m").await;
    assert_eq!((demand.state, demand.order), (State::Cold, 1));
    rig.hears_nothing_for(SECOND).await;
    let answer = rig.ask();
    let demand = rig.demand("m").await;
    assert_eq!(
        demand.state,
        State::Waiting {
            from: SleepLevel::Cold
        }
    );
    pass(SECOND).await;
    let demand = rig.demand("m").await;
    assert!(is_about(demand.oldest_wait, SECOND), "{demand:?}");
    assert_eq!(demand.queued, 1);
    rig.start("m", 1).await;
    assert_eq!(generation(&permit(answer).await), 1);
    pass(SECOND).await;
    assert_eq!(rig.demand("m").await.queued, 0);
}

#[actix_rt::test]
async fn start_tells_how_far_it_got_and_its_process() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    let answer = rig.ask();
    let phase = Phase::Loading;
    rig.news(
        "m",
        1,
        News::Progressed {
            phase,
            pid: Some(7),
        },
    );
    let state = rig.state().await;
    assert_eq!(
        (state.state, state.pid),
        (State::Starting { phase }, Some(7))
    );
    assert_eq!((state.waiting, state.running), (1, 0));
    rig.ready("m", 1);
    drop(permit(answer).await);
    rig.exited(1, FailureClass::Crashed);
    assert_eq!(rig.state().await.pid, None);
}

#[actix_rt::test]
async fn inherited_engine_is_adopted_and_no_start_is_counted() {
    let mut rig = Rig::prepared(params()).await;
    rig.offer_orphan("m", 7);
    rig.hears("m/7 spawn v1 on gpu0").await;
    assert_eq!(rig.state().await.state, State::Adopting);
    rig.ready("m", 7);
    let state = rig.state().await;
    assert_eq!(state.state, State::Ready);
    assert_eq!((state.record.adoptions, state.record.starts), (1, 0));
    assert_eq!(generation(&permit(rig.ask()).await), 7);
}

#[actix_rt::test]
async fn inherited_engine_that_sleeps_is_left_asleep_until_somebody_asks() {
    let mut rig = Rig::prepared(params()).await;
    rig.offer_orphan("m", 7);
    rig.hears("m/7 spawn v1 on gpu0").await;
    let (level, endpoint) = (SleepLevel::L1, endpoint("m", 7).into());
    rig.news("m", 7, News::FoundAsleep { level, endpoint });
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.state, State::Asleep { level });
    let answer = rig.ask();
    assert_eq!(rig.demand("m").await.state, State::Waiting { from: level });
    rig.grant("m");
    rig.hears("m/7 wake from L1").await;
    rig.news("m", 7, News::Woken);
    rig.hears("m/7 verify").await;
    rig.news("m", 7, News::Verified);
    assert_eq!(generation(&permit(answer).await), 7);
}

#[actix_rt::test]
async fn inherited_engine_that_proves_useless_is_no_failure_and_the_next_start_is_above_it() {
    let mut rig = Rig::prepared(params()).await;
    rig.offer_orphan("m", 7);
    rig.hears("m/7 spawn v1 on gpu0").await;
    rig.exited(7, FailureClass::Canary);
    let state = rig.state().await;
    assert_eq!(
        state.state,
        State::Waiting {
            from: SleepLevel::Cold
        }
    );
    assert_eq!((state.record.failures, state.record.note), (0, None));
    rig.start("m", 8).await;
}

#[actix_rt::test]
async fn engine_loaded_ahead_follows_its_order_only_when_it_starts() {
    let mut rig = Rig::prepared(lazy()).await;
    rig.prefetch("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    let demands = rig.demands("m").await;
    let waiting = demands.iter().filter(|demand| demand.is_wanted());
    let under: Vec<u64> = waiting.map(|demand| demand.order).collect();
    // The tracker would take its place back from one that rests under the order that gave it.
    assert_eq!(under, [0]);
    assert_eq!(rig.demand("m").await.order, rig.orders);
}

#[actix_rt::test]
async fn engine_loaded_ahead_is_a_hit_once_somebody_asks() {
    let mut rig = Rig::prepared(lazy()).await;
    assert!(rig.demand("m").await.may_prefetch);
    rig.prefetch("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.ready("m", 1);
    assert!(!rig.demand("m").await.may_prefetch);
    rig.prefetch("m");
    let counts = |state: ModelState| (state.record.prefetches, state.record.prefetch_hits);
    assert_eq!(counts(rig.state().await), (1, 0));
    drop(permit(rig.ask()).await);
    drop(permit(rig.ask()).await);
    assert_eq!(counts(rig.state().await), (1, 1));
}

#[actix_rt::test]
async fn engine_loaded_ahead_that_had_to_go_before_anybody_asked_is_no_hit() {
    let mut rig = Rig::prepared(lazy()).await;
    rig.prefetch("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.ready("m", 1);
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    let _asked = rig.ask();
    assert_eq!(rig.state().await.record.prefetch_hits, 0);
}

#[actix_rt::test]
async fn what_nobody_can_tell_to_be_needed_is_not_loaded_ahead() {
    let with_ttl = Params {
        idle_ttl: Some(SECOND),
        ..lazy()
    };
    let with_two = Params {
        autostart: false,
        ..with(&["m", "m#2"])
    };
    for params in [with_ttl, with_two] {
        let mut rig = Rig::prepared(params).await;
        assert!(!rig.demand("m").await.may_prefetch);
        rig.prefetch("m");
        rig.hears_nothing_for(SECOND).await;
        let state = rig.state().await;
        assert_eq!((state.state, state.record.prefetches), (State::Cold, 0));
    }
}

#[actix_rt::test]
async fn model_whose_download_failed_is_refused_until_it_is_there() {
    let mut rig = Rig::new(params());
    let class = FailureClass::Download;
    rig.preparation("m", 1, Preparation::Step("downloading".to_owned()));
    assert_eq!(rig.state().await.record.note.unwrap(), "downloading");
    let waits = rig.ask();
    let reason = "no route to host".to_owned();
    rig.preparation("m", 1, Preparation::Failed { class, reason });
    let why = Refusal::Broken {
        class,
        retry_after: Some(kvwarden_policy::backoff::DOWNLOAD_AGAIN),
    };
    assert_eq!(refusal(waits).await, why);
    assert_eq!(refusal(rig.ask()).await, why);
    assert_eq!(rig.state().await.record.note.unwrap(), "no route to host");
    rig.prepare("m", 1, "v1");
    rig.hears("m registers").await;
    assert_eq!(rig.state().await.record.note, None);
    rig.start("m", 1).await;
}

#[actix_rt::test]
async fn preparation_of_an_older_configuration_is_counted_and_ignored() {
    let mut rig = Rig::new(params());
    rig.prepare("m", 0, "v0");
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!((state.state, state.record.stale), (State::Fetching, 1));
    assert!(!state.engines[0].is_prepared);
}

#[actix_rt::test]
async fn cache_that_outlived_an_engine_is_shown_on_both_sides_of_its_end() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    let kept = |slots| Kept {
        slots,
        ..Kept::default()
    };
    rig.news("m", 1, News::Restored(kept(1)));
    rig.ready("m", 1);
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.news("m", 1, News::Saved(kept(2)));
    rig.exited(1, FailureClass::Stopped);
    let record = rig.state().await.record;
    assert_eq!((record.restored, record.saved), (kept(1), kept(2)));
}
