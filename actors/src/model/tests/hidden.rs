//! Requests whose answers come whole, so that nothing is seen of them until then.

use kvwarden_policy::cost::Usage;

use super::*;

#[actix_rt::test]
async fn engine_carries_a_prompt_until_it_has_probably_been_computed() {
    let rig = Rig::serving(params()).await;
    let running = permit(rig.ask_whole()).await;
    assert!(rig.engine("m").await.occupancy.unacked > 0);
    pass(SECOND).await;
    let occupancy = rig.engine("m").await.occupancy;
    assert_eq!((occupancy.unacked, occupancy.running), (0, 1));
    drop(running);
    assert_eq!(rig.engine("m").await.occupancy.running, 0);
}

#[actix_rt::test]
async fn estimated_tokens_are_no_sign_of_life() {
    let mut rig = Rig::serving(params()).await;
    let _running = permit(rig.ask_whole()).await;
    let begun = Instant::now();
    rig.hears("m/1 probe").await;
    assert!(begun.elapsed() < STALL + SECOND, "{:?}", begun.elapsed());
    rig.hears("m/1 give up").await;
}

#[actix_rt::test]
async fn engine_that_computes_only_whole_answers_lives_by_its_own_account_or_a_proof() {
    let mut rig = Rig::serving(params()).await;
    let _running = permit(rig.ask_whole()).await;
    // More often than the model asks the engine itself, which tells nothing here.
    for step in 0..300 {
        rig.model.do_send(EngineSays {
            engine: "m".into(),
            generation: Generation(1),
            waiting: Some(0),
            work: Some(step),
        });
        rig.hears_nothing_for(STALL / 100).await;
    }
    for _ in 0..3 {
        rig.hears("m/1 probe").await;
        rig.news("m", 1, News::Proved);
    }
    rig.hears_nothing_for(STALL / 2).await;
}

#[actix_rt::test]
async fn what_streams_although_it_was_asked_whole_is_seen() {
    let mut rig = Rig::serving(params()).await;
    let mut running = permit(rig.ask_whole()).await;
    for _ in 0..4 {
        running.streamed(1);
        rig.hears_nothing_for(STALL / 2).await;
    }
    running.report(Usage {
        prompt_tokens: 100,
        cached_tokens: 0,
        completion_tokens: 4,
    });
    drop(running);
    assert_eq!(rig.state().await.running, 0);
}
