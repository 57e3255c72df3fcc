//! A configuration that changes under a model that serves.

use super::*;

/// With these engines, each as that revision of the configuration has it.
fn revised(engines: &[&str], revision: u64) -> Params {
    let engines = engines.iter().map(|name| engine(name, revision));
    Params {
        engines: engines.collect(),
        ..params()
    }
}

fn reconfigure(rig: &Rig, params: Params) {
    rig.model.do_send(Reconfigure(params));
}

#[actix_rt::test]
async fn engine_serves_until_the_next_is_prepared_and_requests_wait_while_it_gives_way() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    reconfigure(&rig, revised(&["m"], 2));
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!(state.state, State::Ready);
    assert!(!state.engines[0].is_prepared);
    rig.prepare("m", 2, "v2");
    rig.hears("m registers").await;
    rig.hears_nothing_for(SECOND).await;
    let waits = rig.ask();
    drop(running);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.until_it_waits("m").await;
    rig.grant("m");
    rig.hears("m/2 spawn v2 on gpu0").await;
    rig.ready("m", 2);
    assert_eq!(generation(&permit(waits).await), 2);
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!((state.state, state.record.failures), (State::Ready, 0));
    assert_eq!(state.engines[0].target, None);
}

#[actix_rt::test]
async fn idle_engine_is_replaced_though_nobody_asks() {
    let mut rig = Rig::serving(params()).await;
    reconfigure(&rig, revised(&["m"], 2));
    rig.prepare("m", 2, "v2");
    rig.hears("m registers").await;
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.until_it_waits("m").await;
}

#[actix_rt::test]
async fn engine_that_serves_the_same_goes_on() {
    let mut rig = Rig::serving(params()).await;
    reconfigure(&rig, revised(&["m"], 2));
    rig.prepare("m", 2, "v1");
    rig.hears("m registers").await;
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!(state.state, State::Ready);
    assert!(state.engines[0].is_prepared);
}

/// A model of two engines, the first of which has been told to give way to its next configuration.
async fn first_gives_way() -> Rig {
    let both = ["m", "m#2"];
    let mut rig = Rig::serving(with(&both)).await;
    reconfigure(&rig, revised(&both, 2));
    for engine in both {
        rig.prepare(engine, 2, "v2");
        rig.hears(&format!("{engine} registers")).await;
    }
    rig.hears("m/1 stop").await;
    rig
}

#[actix_rt::test]
async fn engines_give_way_one_after_the_other_and_the_rest_stay_if_the_new_one_fails() {
    let mut rig = first_gives_way().await;
    rig.exited(1, FailureClass::Stopped);
    rig.until_it_waits("m").await;
    rig.grant("m");
    rig.hears("m/2 spawn v2 on gpu0").await;
    rig.exited(2, FailureClass::Crashed);
    rig.until_it_waits("m").await;
    rig.hears_nothing_for(10 * SECOND).await;
    assert_eq!(rig.engine("m#2").await.state, State::Ready);
    rig.grant("m");
    rig.hears("m/3 spawn v2 on gpu0").await;
    rig.ready("m", 3);
    rig.hears("m#2/1 stop").await;
}

#[actix_rt::test]
async fn engine_that_backs_off_is_tried_at_once_with_the_new_configuration() {
    let mut rig = Rig::serving(params()).await;
    rig.exited(1, FailureClass::Crashed);
    assert!(rig.state().await.state.has_failed());
    reconfigure(&rig, revised(&["m"], 2));
    rig.prepare("m", 2, "v2");
    rig.hears("m registers").await;
    let waited = rig.until_it_waits("m").await;
    assert!(waited < SECOND / 2, "{waited:?}");
    rig.grant("m");
    rig.hears("m/2 spawn v2 on gpu0").await;
}

#[actix_rt::test]
async fn engine_that_is_gone_from_the_configuration_ends_after_its_requests_and_others_go_on() {
    let mut rig = Rig::serving(with(&["m", "m#2"])).await;
    let on_first = permit(rig.ask()).await;
    let on_second = permit(rig.ask()).await;
    reconfigure(&rig, with(&["m#2"]));
    rig.hears_nothing_for(SECOND).await;
    drop(on_first);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.hears("m unregisters").await;
    assert_eq!(rig.state().await.engines.len(), 1);
    assert_eq!(rig.engine("m#2").await.occupancy.running, 1);
    drop(on_second);
    assert_eq!(rig.engine("m#2").await.occupancy.running, 0);
    drop(permit(rig.ask()).await);
}

#[actix_rt::test]
async fn engine_that_is_new_in_the_configuration_comes_beside_those_that_serve() {
    let mut rig = Rig::serving(params()).await;
    reconfigure(&rig, with(&["m", "m#2"]));
    rig.prepare("m#2", 1, "v1");
    rig.hears("m#2 registers").await;
    rig.start("m#2", 1).await;
    assert_eq!(rig.engine("m").await.state, State::Ready);
    let _both = (permit(rig.ask()).await, permit(rig.ask()).await);
}

#[actix_rt::test]
async fn model_that_is_to_start_with_the_server_from_now_on_starts_now() {
    let rig = Rig::prepared(lazy()).await;
    reconfigure(&rig, lazy());
    assert_eq!(rig.demand("m").await.state, State::Cold);
    reconfigure(&rig, params());
    let waiting = State::Waiting {
        from: SleepLevel::Cold,
    };
    assert_eq!(rig.demand("m").await.state, waiting);
}

#[actix_rt::test]
async fn pin_of_an_operator_outlives_a_file_that_says_the_same_as_before() {
    let mut rig = Rig::serving(params()).await;
    rig.target(Target::Pin(true));
    reconfigure(&rig, params());
    pass(SECOND).await;
    assert!(rig.demand("m").await.is_pinned);
    let pinned = Params {
        is_pinned: true,
        ..params()
    };
    reconfigure(&rig, pinned);
    reconfigure(&rig, params());
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
}

#[actix_rt::test]
async fn model_that_was_unloaded_stays_so_when_the_configuration_is_read_again() {
    let mut rig = Rig::serving(params()).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    reconfigure(&rig, revised(&["m"], 2));
    assert_eq!(rig.demand("m").await.state, State::Cold);
    rig.prepare("m", 2, "v2");
    rig.hears("m registers").await;
    pass(SECOND).await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn engine_that_was_put_to_sleep_while_another_gave_way_gives_way_too() {
    let mut rig = first_gives_way().await;
    rig.target(Target::Sleep(SleepLevel::L1));
    rig.hears("m#2/1 demote from Ready to L1").await;
    rig.news("m#2", 1, News::Demoted);
    rig.hears("m#2/1 stop").await;
}

#[actix_rt::test]
async fn engine_that_crashed_is_forgotten_only_after_the_last_that_ran_on_it() {
    let mut rig = Rig::serving(with(&["m", "m#2"])).await;
    let on_first = permit(rig.ask()).await;
    let on_second = permit(rig.ask()).await;
    rig.exited(1, FailureClass::Crashed);
    reconfigure(&rig, with(&["m#2"]));
    rig.hears_nothing_for(SECOND).await;
    drop(on_first);
    rig.hears("m unregisters").await;
    assert_eq!(rig.engine("m#2").await.occupancy.running, 1);
    drop(on_second);
    assert_eq!(rig.engine("m#2").await.occupancy.running, 0);
}

#[actix_rt::test]
async fn queue_goes_by_the_new_configuration_at_once() {
    let mut rig = Rig::serving(params()).await;
    let mut next = params();
    next.scheduling.bounds.requests = 1;
    reconfigure(&rig, next);
    let _running = permit(rig.ask()).await;
    let mut waits = rig.ask();
    let why = refusal(rig.ask()).await;
    assert!(matches!(why, Refusal::TenantQueueFull { .. }), "{why}");
    let mut next = params();
    next.scheduling.fair.capacity.sequences = 2;
    reconfigure(&rig, next);
    pass(SECOND).await;
    let _running_too = waits.try_recv().unwrap().unwrap();
    let _waits = rig.ask();
    rig.hears_nothing_for(SECOND).await;
}
