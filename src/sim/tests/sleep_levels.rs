//! Down the ladder and up again, by the calls that kvwarden makes.

use std::time::Duration;

use kvwarden_actors::engine::{
    Endpoint, EngineKind,
    probe::Canary,
    sleep::{self, SleepLevelError},
};
use kvwarden_policy::{
    Generation, ModelId,
    lifecycle::{SleepLevel, SleepLevels},
};

use crate::harness::{DEADLINE, Engine, within};

const TINY: [&str; 2] = ["--preset", "tiny"];

fn endpoint(engine: &Engine) -> Endpoint {
    Endpoint {
        model: ModelId::from("sim"),
        kind: EngineKind::Sim,
        generation: Generation(1),
        base: format!("http://127.0.0.1:{}", engine.port),
        api_key: None,
        served_name: "sim".to_owned(),
        levels: SleepLevels::default(),
        canary: None,
    }
}

async fn started(faults: &[&str]) -> (Engine, Endpoint) {
    let engine = Engine::start(&[&TINY, faults].concat()).await;
    let endpoint = endpoint(&engine);
    (engine, endpoint)
}

async fn held(engine: &Engine) -> u64 {
    let (_, memory) = engine.get("/kvwarden-sim/memory").await;
    memory["total_bytes"].as_u64().unwrap()
}

async fn canary(endpoint: &Endpoint) -> Canary {
    sleep::canary(endpoint).await.unwrap()
}

#[actix_web::test]
async fn every_level_holds_less_and_wakes_to_the_same_answer() {
    let (engine, endpoint) = started(&[]).await;
    let stored = canary(&endpoint).await;
    assert!(stored.is_some());
    let awake = held(&engine).await;
    let mut last = awake;
    for level in [SleepLevel::Parked, SleepLevel::L1, SleepLevel::L2] {
        sleep::demote(&endpoint, SleepLevel::Ready, level, DEADLINE)
            .await
            .unwrap();
        let asleep = held(&engine).await;
        assert!(
            asleep < awake && asleep <= last,
            "{level}: {asleep} of {awake}"
        );
        last = asleep;
        sleep::promote(&endpoint, level, DEADLINE).await.unwrap();
        assert_eq!(held(&engine).await, awake);
        sleep::verify(&endpoint, &stored).await.unwrap();
    }
}

#[actix_web::test]
async fn parked_engine_can_go_deeper_and_a_sleeping_one_can_not() {
    let (engine, endpoint) = started(&[]).await;
    let stored = canary(&endpoint).await;
    sleep::demote(&endpoint, SleepLevel::Ready, SleepLevel::Parked, DEADLINE)
        .await
        .unwrap();
    sleep::demote(&endpoint, SleepLevel::Parked, SleepLevel::L2, DEADLINE)
        .await
        .unwrap();
    let refused = sleep::demote(&endpoint, SleepLevel::L2, SleepLevel::L1, DEADLINE).await;
    assert!(matches!(refused, Err(SleepLevelError::NoWay)));
    sleep::promote(&endpoint, SleepLevel::L2, DEADLINE)
        .await
        .unwrap();
    sleep::verify(&endpoint, &stored).await.unwrap();
    drop(engine);
}

#[actix_web::test]
async fn what_an_engine_supports_is_asked_and_what_is_not_allowed_is_left_out() {
    let (engine, endpoint) = started(&[]).await;
    let all: SleepLevels = SleepLevel::ASLEEP.into_iter().collect();
    assert_eq!(sleep::supported(&endpoint, all).await, all);
    let parked = SleepLevels::default().with(SleepLevel::Parked);
    assert_eq!(sleep::supported(&endpoint, parked).await, parked);
    drop(engine);
    assert_eq!(
        sleep::supported(&endpoint, all).await,
        SleepLevels::default()
    );
}

#[actix_web::test]
async fn other_weights_are_noticed() {
    let (_engine, endpoint) = started(&["--fault-wake-garbles"]).await;
    let stored = canary(&endpoint).await;
    sleep::demote(&endpoint, SleepLevel::Ready, SleepLevel::L1, DEADLINE)
        .await
        .unwrap();
    sleep::promote(&endpoint, SleepLevel::L1, DEADLINE)
        .await
        .unwrap();
    let wrong = sleep::verify(&endpoint, &stored).await.unwrap_err();
    assert!(wrong.contains("!!!!"), "{wrong}");
}

#[actix_web::test]
async fn wake_that_hangs_is_given_up() {
    let (_engine, endpoint) = started(&["--fault-wake-hangs"]).await;
    sleep::demote(&endpoint, SleepLevel::Ready, SleepLevel::L1, DEADLINE)
        .await
        .unwrap();
    let patience = Duration::from_millis(200);
    let waking = sleep::promote(&endpoint, SleepLevel::L1, patience);
    let error = within("the wake to be given up", waking).await.unwrap_err();
    assert!(error.to_string().contains("was not answered"), "{error}");
}
