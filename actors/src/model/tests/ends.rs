//! How a model ends: the node drains, the configuration has it no more, another process has taken over.

use super::*;

fn drain(rig: &Rig, in_time: Duration) {
    rig.model.do_send(Drain {
        deadline: Instant::now() + in_time,
    });
}

#[actix_rt::test]
async fn draining_engine_stops_after_its_last_request() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    let waiting = rig.ask();
    rig.state().await;
    drain(&rig, DEADLINE);
    assert_eq!(refusal(rig.ask()).await, Refusal::Draining);
    rig.hears_nothing_for(SECOND).await;
    drop(running);
    let last = permit(waiting).await;
    rig.hears_nothing_for(SECOND).await;
    drop(last);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.state, State::Cold);
}

#[actix_rt::test]
async fn draining_engine_stops_under_its_requests_at_the_deadline() {
    let mut rig = Rig::serving(params()).await;
    let _running = permit(rig.ask()).await;
    let waiting = rig.ask();
    drain(&rig, 10 * SECOND);
    let begun = Instant::now();
    rig.hears("m/1 stop").await;
    assert!(begun.elapsed() >= 10 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(refusal(waiting).await, Refusal::Draining);
}

#[actix_rt::test]
async fn draining_model_ends_what_sleeps_and_brings_nothing_back() {
    let mut rig = Rig::serving(params()).await;
    rig.sleep(SleepLevel::L1).await;
    drain(&rig, DEADLINE);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.prefetch("m");
    rig.hears_nothing_for(SECOND).await;
    let demand = rig.demand("m").await;
    assert_eq!((demand.state, demand.may_prefetch), (State::Cold, false));
}

#[actix_rt::test]
async fn draining_model_has_no_target() {
    let mut rig = Rig::serving(params()).await;
    rig.sleep(SleepLevel::L1).await;
    rig.target(Target::Load);
    assert_eq!(
        rig.demand("m").await.state,
        State::Waiting {
            from: SleepLevel::L1
        }
    );
    drain(&rig, DEADLINE);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    assert_eq!(rig.demand("m").await.state, State::Cold);
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn engine_that_crashes_while_it_drains_is_not_started_again() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    drain(&rig, DEADLINE);
    rig.exited(1, FailureClass::Crashed);
    drop(running);
    pass(10 * SECOND).await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
    rig.prepare("m", 1, "v1");
    rig.hears("m registers").await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn removed_model_serves_whom_it_let_in_and_says_that_it_is_done_until_it_is_let_go() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    let waiting = rig.ask();
    rig.model.do_send(Remove);
    rig.hears_nothing_for(SECOND).await;
    assert!(rig.state().await.is_leaving);
    drop(running);
    drop(permit(waiting).await);
    rig.hears("m/1 stop").await;
    rig.hears_nothing_for(SECOND).await;
    rig.exited(1, FailureClass::Stopped);
    rig.hears("m is removed").await;
    rig.hears("m is removed").await;
    rig.model.do_send(Removed("m".into()));
    rig.hears("m unregisters").await;
    pass(SECOND).await;
    assert!(!rig.model.connected());
}

#[actix_rt::test]
async fn removed_model_forgets_what_operators_wanted_and_rolls_nothing() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.target(Target::Load);
    rig.model.do_send(Remove);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.hears("m is removed").await;
    let state = rig.state().await;
    assert_eq!((state.state, state.engines[0].target), (State::Cold, None));
    assert!(!rig.demand("m").await.may_prefetch);
}

#[actix_rt::test]
async fn removed_model_that_comes_back_in_time_goes_on() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    rig.model.do_send(Remove);
    rig.model.do_send(Reconfigure(params()));
    drop(running);
    rig.hears_nothing_for(SECOND).await;
    let state = rig.state().await;
    assert_eq!((state.state, state.is_leaving), (State::Ready, false));
}

#[actix_rt::test]
async fn model_of_a_process_that_was_taken_over_serves_only_with_what_it_has() {
    let rig = Rig::prepared(params()).await;
    let waits = rig.ask();
    rig.model.do_send(Resign);
    assert_eq!(refusal(waits).await, Refusal::Draining);
    assert_eq!(refusal(rig.ask()).await, Refusal::Draining);
    drop(rig);
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.model.do_send(Resign);
    let waits = rig.ask();
    rig.ready("m", 1);
    drop(permit(waits).await);
    rig.exited(1, FailureClass::Crashed);
    assert_eq!(refusal(rig.ask()).await, Refusal::Draining);
}

#[actix_rt::test]
async fn model_that_comes_to_be_prepared_while_it_ends_is_not_started() {
    let draining = Rig::new(params());
    drain(&draining, DEADLINE);
    draining.prepare("m", 1, "v1");
    assert_eq!(draining.demand("m").await.state, State::Cold);
    drop(draining);
    let removed = Rig::new(params());
    removed.model.do_send(Remove);
    removed.prepare("m", 1, "v1");
    assert_eq!(removed.demand("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn request_that_was_let_in_is_served_by_an_engine_that_still_starts_when_the_node_drains() {
    let mut rig = Rig::prepared(params()).await;
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    let waiting = rig.ask();
    drain(&rig, DEADLINE);
    rig.hears_nothing_for(SECOND).await;
    rig.ready("m", 1);
    drop(permit(waiting).await);
    rig.hears("m/1 stop").await;
}

#[actix_rt::test]
async fn draining_model_asks_for_no_place_though_requests_wait() {
    let mut rig = Rig::serving(params()).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    let _waits = rig.ask();
    rig.state().await;
    drain(&rig, DEADLINE);
    rig.exited(1, FailureClass::Stopped);
    pass(SECOND).await;
    assert_eq!(rig.demand("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn engine_serves_to_the_end_of_its_model_though_another_is_prepared() {
    for is_draining in [true, false] {
        let mut rig = Rig::serving(params()).await;
        let running = permit(rig.ask()).await;
        let waiting = rig.ask();
        let mut next = params();
        next.engines = vec![engine("m", 2)];
        rig.model.do_send(Reconfigure(next));
        if is_draining {
            drain(&rig, DEADLINE);
        } else {
            rig.model.do_send(Remove);
        }
        rig.prepare("m", 2, "v2");
        rig.hears("m registers").await;
        rig.hears_nothing_for(SECOND).await;
        drop(running);
        assert_eq!(generation(&permit(waiting).await), 1);
        rig.hears("m/1 stop").await;
    }
}

#[actix_rt::test]
async fn removed_model_without_an_engine_stays_for_whom_it_let_in() {
    let mut rig = Rig::prepared(params()).await;
    let waiting = rig.ask();
    rig.model.do_send(Remove);
    rig.hears_nothing_for(SECOND).await;
    rig.start("m", 1).await;
    drop(permit(waiting).await);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.hears("m is removed").await;
}
