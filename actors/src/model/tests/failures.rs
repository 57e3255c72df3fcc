//! Engines that fail, and what becomes of the requests.

use super::*;

/// The engine fails at every start, and waits for its place again in between.
async fn fails_five_times(rig: &mut Rig) {
    for generation in 1..=5 {
        rig.until_it_waits("m").await;
        rig.grant("m");
        rig.hears(&format!("m/{generation} spawn v1 on gpu0")).await;
        rig.exited(generation, FailureClass::Crashed);
    }
}

#[actix_rt::test]
async fn request_whose_engine_died_is_answered_by_the_next() {
    let mut rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    rig.model.do_send(EngineSays {
        engine: "m".into(),
        generation: Generation(1),
        waiting: Some(3),
        work: None,
    });
    assert_eq!(rig.state().await.engine_waiting, Some(3));
    rig.exited(1, FailureClass::Crashed);
    let again = running.requeue();
    let state = rig.state().await;
    let class = FailureClass::Crashed;
    assert_eq!(state.state, State::Backoff { attempt: 1, class });
    assert_eq!((state.record.retried, state.record.failures), (1, 1));
    assert!(state.record.is_failing);
    assert_eq!(state.record.note.unwrap(), "it Crashed");
    assert_eq!(state.record.log_tail, ["last words"]);
    assert_eq!((state.url, state.engine_waiting), (None, None));
    let waited = rig.until_it_waits("m").await;
    assert!(SECOND <= waited && waited <= 3 * SECOND, "{waited:?}");
    rig.start("m", 2).await;
    assert_eq!(generation(&permit(again).await), 2);
    let record = rig.state().await.record;
    assert_eq!((record.is_failing, record.note), (false, None));
}

#[actix_rt::test]
async fn engine_that_did_not_answer_is_left_alone_for_a_second() {
    let mut rig = Rig::serving(params()).await;
    let mut lost = permit(rig.ask()).await;
    lost.engine_unreachable();
    drop(lost);
    let mut next = rig.ask();
    pass(Duration::from_millis(900)).await;
    assert!(next.try_recv().is_err());
    pass(Duration::from_millis(200)).await;
    assert!(next.try_recv().unwrap().is_ok());
    rig.hears_nothing_for(SECOND).await;
    assert_eq!(rig.state().await.state, State::Ready);
}

#[actix_rt::test]
async fn request_that_its_engine_broke_off_waits_alone_for_its_next_turn() {
    let rig = Rig::serving(params()).await;
    let mut again = permit(rig.ask()).await.requeue();
    for _ in 0..10 {
        // Others are served meanwhile, on its own place.
        let other = permit(rig.ask()).await;
        pass(Duration::from_millis(15)).await;
        drop(other);
        assert!(again.try_recv().is_err());
    }
    pass(Duration::from_millis(200)).await;
    assert!(again.try_recv().unwrap().is_ok());
    let record = rig.state().await.record;
    assert_eq!((record.retried, record.dispatched), (1, 12));
}

#[actix_rt::test]
async fn requests_lost_at_once_hold_up_nobody_else() {
    let rig = Rig::serving(params()).await;
    let mut lost: Vec<_> = Vec::new();
    for _ in 0..40 {
        lost.push(permit(rig.ask()).await.requeue());
    }
    let begun = Instant::now();
    drop(permit(rig.ask()).await);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    pass(SECOND).await;
    drop(permit(lost.remove(0)).await);
}

#[actix_rt::test]
async fn five_failures_break_a_model_and_after_a_pause_it_gets_one_more_try() {
    let mut rig = Rig::prepared(params()).await;
    let waits = rig.ask();
    fails_five_times(&mut rig).await;
    let why = Refusal::Broken {
        class: FailureClass::Crashed,
        retry_after: Some(BROKEN),
    };
    assert_eq!(refusal(waits).await, why);
    assert_eq!(refusal(rig.ask()).await, why);
    assert_eq!(rig.demand("m").await.queued, 0);
    let paused = rig.until_it_waits("m").await;
    assert!((BROKEN..BROKEN + SECOND).contains(&paused), "{paused:?}");
    let waits = rig.ask();
    rig.grant("m");
    rig.hears("m/6 spawn v1 on gpu0").await;
    rig.exited(6, FailureClass::Crashed);
    assert_eq!(refusal(waits).await, why);
    rig.until_it_waits("m").await;
    rig.start("m", 7).await;
    drop(permit(rig.ask()).await);
}

#[actix_rt::test]
async fn failure_that_trying_again_cannot_mend_breaks_a_model_at_once() {
    let mut rig = Rig::prepared(params()).await;
    let waits = rig.ask();
    rig.grant("m");
    rig.hears("m/1 spawn v1 on gpu0").await;
    rig.exited(1, FailureClass::BadFlag);
    let why = Refusal::Broken {
        class: FailureClass::BadFlag,
        retry_after: None,
    };
    assert_eq!(refusal(waits).await, why);
    rig.hears_nothing_for(BROKEN + SECOND).await;
    assert_eq!(refusal(rig.ask()).await, why);
}

#[actix_rt::test]
async fn news_of_an_earlier_start_is_counted_and_changes_nothing() {
    let mut rig = Rig::serving(params()).await;
    rig.exited(1, FailureClass::Crashed);
    rig.until_it_waits("m").await;
    rig.start("m", 2).await;
    rig.exited(1, FailureClass::Crashed);
    rig.news("m", 3, News::Demoted);
    rig.model.do_send(EngineSays {
        engine: "m".into(),
        generation: Generation(1),
        waiting: Some(9),
        work: None,
    });
    let state = rig.state().await;
    assert_eq!((state.state, state.record.stale), (State::Ready, 3));
    assert_eq!((state.record.failures, state.engine_waiting), (1, None));
    rig.news("m#2", 2, crashed(FailureClass::Crashed));
    assert_eq!(rig.state().await.record.stale, 3, "no engine of this model");
}

#[actix_rt::test]
async fn engine_that_ends_while_it_is_stopped_has_not_failed() {
    let mut rig = Rig::serving(params()).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Crashed);
    let record = rig.state().await.record;
    assert_eq!((record.failures, record.note), (0, None));
    assert!(record.log_tail.is_empty());
}

#[actix_rt::test]
async fn request_has_one_deadline_however_often_it_is_tried() {
    let queue_timeout = 10 * SECOND;
    let rig = Rig::serving(Params {
        queue_timeout,
        ..params()
    })
    .await;
    let running = permit(rig.ask()).await;
    pass(9 * SECOND).await;
    rig.exited(1, FailureClass::Crashed);
    let begun = Instant::now();
    let waited = queue_timeout;
    let why = refusal(running.requeue()).await;
    assert_eq!(why, Refusal::QueueTimeout { waited });
    assert!(is_about(begun.elapsed(), SECOND), "{:?}", begun.elapsed());
}
