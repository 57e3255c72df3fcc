//! Engines that a command of their own ends: the shim runs it before the signal.

use super::*;

/// A spec whose engine is ended by its own command.
fn with_stop(rig: &Rig, script: &str, stop: &str) -> ShimSpec {
    let spec = rig.spec(script);
    let stop = StopCommand {
        program: "sh".into(),
        args: vec!["-c".into(), stop.into()],
        env: spec.env.clone(),
    };
    ShimSpec {
        stop: Some(stop),
        ..spec
    }
}

#[tokio::test]
async fn command_that_ends_an_engine_comes_before_the_signal() {
    let rig = Rig::new("command");
    let stop = "echo stopping; sleep 0.2; echo stopped";
    let mut child = rig.start_spec(with_stop(&rig, OBEDIENT, stop)).await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(NEVER);
    let end = ended(&mut child).await;
    assert_eq!((end.code, end.class), (Some(0), FailureClass::Stopped));
    assert_eq!(end.log_tail, ["ready", "stopping", "stopped", "bye"]);
}

#[tokio::test]
async fn command_that_ends_an_engine_runs_after_an_end_of_its_own() {
    let rig = Rig::new("cleanup");
    let spec = with_stop(&rig, "echo gone; exit 3", "sleep 0.2; echo cleaned");
    let mut child = rig.start_spec(spec).await;
    started_pid(&mut child).await;
    let end = ended(&mut child).await;
    assert_eq!((end.code, end.class), (Some(3), FailureClass::Crashed));
    assert_eq!(end.log_tail, ["gone", "cleaned"]);
    assert_eq!(rig.log().matches("cleaned").count(), 1);
    assert!(!rig.log().contains("its `stop`"), "{}", rig.log());
}

#[tokio::test]
async fn command_that_fails_to_end_an_engine_is_told_in_its_log() {
    let rig = Rig::new("fails");
    let mut child = rig.start_spec(with_stop(&rig, OBEDIENT, "exit 3")).await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(NEVER);
    assert_eq!(ended(&mut child).await.code, Some(0));
    rig.logged("its `stop` exited with code 3; see whether it left something")
        .await;
}

#[tokio::test]
async fn command_that_ends_an_engine_has_its_grace_and_no_more() {
    let rig = Rig::new("patience");
    let mut child = rig
        .start_spec(with_stop(&rig, STUBBORN, "sleep 3600"))
        .await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(Duration::from_millis(300));
    assert_eq!(ended(&mut child).await.signal, Some(9));
    rig.tree_gone().await;
    rig.logged("its `stop` was killed by signal 9; see whether it left something")
        .await;
}

#[tokio::test]
async fn command_that_is_not_there_leaves_the_signal() {
    let rig = Rig::new("missing");
    let mut spec = with_stop(&rig, OBEDIENT, "");
    spec.stop.as_mut().unwrap().program = "/nonexistent/stop".into();
    let mut child = rig.start_spec(spec).await;
    started(&mut child).await;
    rig.logged("ready").await;
    child.stop(NEVER);
    assert_eq!(ended(&mut child).await.code, Some(0));
}
