//! Several engines of one model.

use kvwarden_policy::cost::Usage;

use super::*;

#[actix_rt::test]
async fn every_engine_that_serves_adds_its_places() {
    let mut rig = Rig::prepared(with(&["m", "m#2"])).await;
    rig.start("m", 1).await;
    let first = permit(rig.ask()).await;
    let mut waiting = rig.ask();
    pass(SECOND).await;
    assert!(waiting.try_recv().is_err());
    rig.start("m#2", 1).await;
    let second = permit(waiting).await;
    let on = |permit: &Permit| permit.endpoint.model.to_string();
    assert_eq!(
        (on(&first), on(&second)),
        ("m".to_owned(), "m#2".to_owned())
    );
    rig.news("m#2", 1, crashed(FailureClass::Crashed));
    let mut third = rig.ask();
    drop(second);
    pass(Duration::from_millis(500)).await;
    assert!(third.try_recv().is_err(), "its only engine has one place");
    drop(first);
    assert_eq!(on(&permit(third).await), "m");
}

#[actix_rt::test]
async fn model_is_broken_only_when_all_its_engines_are() {
    let mut rig = Rig::prepared(with(&["m", "m#2"])).await;
    for engine in ["m", "m#2"] {
        rig.grant(engine);
        rig.hears(&format!("{engine}/1 spawn v1 on gpu0")).await;
    }
    let mut waits = rig.ask();
    rig.news("m", 1, crashed(FailureClass::BadFlag));
    pass(SECOND).await;
    assert!(waits.try_recv().is_err());
    let phase = Phase::Spawned;
    assert_eq!(rig.state().await.state, State::Starting { phase });
    rig.news("m#2", 1, crashed(FailureClass::BadFlag));
    assert!(matches!(refusal(waits).await, Refusal::Broken { .. }));
}

#[actix_rt::test]
async fn request_wakes_the_engine_that_is_closest_to_serving() {
    let mut rig = Rig::serving(with(&["m", "m#2"])).await;
    rig.reclaim("m", SleepLevel::Cold);
    rig.hears("m/1 stop").await;
    rig.exited(1, FailureClass::Stopped);
    rig.reclaim("m#2", SleepLevel::L2);
    rig.hears("m#2/1 demote from Ready to L2").await;
    rig.news("m#2", 1, News::Demoted);
    assert_eq!(
        rig.state().await.state,
        State::Asleep {
            level: SleepLevel::L2
        }
    );
    let _waits = rig.ask();
    pass(SECOND).await;
    let waiting = State::Waiting {
        from: SleepLevel::L2,
    };
    assert_eq!(rig.demand("m#2").await.state, waiting);
    assert_eq!(rig.demand("m").await.state, State::Cold, "one is enough");
    assert_eq!(rig.demand("m#2").await.asked_at, None, "said of the first");
}

#[actix_rt::test]
async fn request_wakes_no_engine_that_the_configuration_has_no_more() {
    let rig = Rig::prepared(Params {
        autostart: false,
        ..with(&["m", "m#2"])
    })
    .await;
    rig.model.do_send(Reconfigure(Params {
        autostart: false,
        ..with(&["m#2"])
    }));
    let _waits = rig.ask();
    let waiting = State::Waiting {
        from: SleepLevel::Cold,
    };
    assert_eq!(rig.demand("m#2").await.state, waiting);
    assert_eq!(rig.engine("m").await.state, State::Cold);
}

#[actix_rt::test]
async fn engine_carries_the_prompts_whose_first_token_has_not_come() {
    let rig = Rig::serving(params()).await;
    let unacked = async || rig.engine("m").await.occupancy.unacked;
    let mut running = permit(rig.ask()).await;
    let guessed = unacked().await;
    assert!(guessed > 0);
    running.first_token();
    assert_eq!(unacked().await, 0);
    for _ in 0..40 {
        // Each byte of this prompt is a token, which is more than was guessed.
        running.report(Usage {
            prompt_tokens: 400,
            cached_tokens: 0,
            completion_tokens: 1,
        });
        drop(running);
        running = permit(rig.ask()).await;
    }
    let learned = unacked().await;
    assert!(learned > 3 * guessed, "{learned} after {guessed}");
}

#[actix_rt::test]
async fn request_whose_client_hung_up_is_not_sent() {
    let rig = Rig::serving(params()).await;
    let running = permit(rig.ask()).await;
    drop(rig.ask());
    let behind = rig.ask();
    drop(running);
    drop(permit(behind).await);
    assert_eq!(rig.state().await.record.dispatched, 2);
}
