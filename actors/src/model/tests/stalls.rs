//! Engines in which nothing moves.

use kvwarden_policy::{cost::Usage, stall::PROOF};

use super::*;

#[actix_rt::test]
async fn engine_in_which_nothing_moves_is_asked_once_and_given_up_once() {
    let mut rig = Rig::serving(params()).await;
    let _running = permit(rig.ask()).await;
    let begun = Instant::now();
    rig.hears("m/1 probe").await;
    let asked = begun.elapsed();
    assert!((STALL..STALL + SECOND).contains(&asked), "{asked:?}");
    rig.hears("m/1 give up").await;
    let given_up = begun.elapsed() - asked;
    assert!((PROOF..PROOF + SECOND).contains(&given_up), "{given_up:?}");
    rig.hears_nothing_for(2 * STALL).await;
    let class = FailureClass::Hung;
    rig.exited(1, class);
    let state = rig.state().await.state;
    assert_eq!(state, State::Backoff { attempt: 1, class });
}

#[actix_rt::test]
async fn engine_that_proves_itself_is_left_alone_for_another_while() {
    let mut rig = Rig::serving(params()).await;
    let _running = permit(rig.ask()).await;
    rig.hears("m/1 probe").await;
    rig.news("m", 1, News::Proved);
    let begun = Instant::now();
    rig.hears("m/1 probe").await;
    assert!(begun.elapsed() >= STALL, "{:?}", begun.elapsed());
}

#[actix_rt::test]
async fn tokens_whole_answers_and_its_own_account_of_its_work_are_signs_of_life() {
    let mut rig = Rig::serving(params()).await;
    let mut running = permit(rig.ask()).await;
    for _ in 0..4 {
        running.streamed(1);
        rig.hears_nothing_for(STALL / 2).await;
    }
    // More often than the model asks the engine itself, which tells nothing here.
    for step in 0..200 {
        rig.model.do_send(EngineSays {
            engine: "m".into(),
            generation: Generation(1),
            waiting: Some(3),
            work: Some(step),
        });
        assert_eq!(rig.state().await.engine_waiting, Some(3));
        rig.hears_nothing_for(STALL / 100).await;
    }
    for _ in 0..4 {
        running.report(Usage {
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 1,
        });
        let next = rig.ask();
        drop(running);
        running = permit(next).await;
        rig.hears_nothing_for(STALL / 2).await;
    }
    rig.hears("m/1 probe").await;
}

#[actix_rt::test]
async fn idle_engine_and_somebody_elses_server_are_not_suspected() {
    let mut rig = Rig::serving(params()).await;
    drop(permit(rig.ask()).await);
    rig.hears_nothing_for(3 * STALL).await;
    drop(rig);
    let mut params = params();
    params.engines[0].kind = EngineKind::Attach;
    let mut rig = Rig::serving(params).await;
    let _running = permit(rig.ask()).await;
    rig.hears_nothing_for(3 * STALL).await;
}

#[actix_rt::test]
async fn engine_after_one_that_hung_is_watched_as_well() {
    let mut rig = Rig::serving(params()).await;
    let _reads_on = permit(rig.ask()).await;
    rig.hears("m/1 probe").await;
    rig.hears("m/1 give up").await;
    rig.exited(1, FailureClass::Hung);
    rig.until_it_waits("m").await;
    rig.start("m", 2).await;
    rig.hears("m/2 probe").await;
}
