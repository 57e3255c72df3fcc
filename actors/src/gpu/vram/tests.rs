//! The driver's answers and what follows from them, with a driver made for it.

use std::{collections::VecDeque, time::Duration};

use actix::{Actor, Context, Handler};
use tokio::sync::mpsc;

use super::*;

const TREE: u32 = 7;
const GIB: u64 = 1 << 30;

/// A device on which the tree holds `own` bytes, if it is shown at all, and others the rest.
fn device(uuid: &str, used: u64, own: Option<u64>) -> DeviceReading {
    let process = |used| DeviceProcess {
        device: 0,
        pid: TREE,
        used: Some(used),
    };
    DeviceReading {
        uuid: uuid.to_owned(),
        total: 80 * GIB,
        used,
        processes: own.map(process).into_iter().collect(),
        ..DeviceReading::default()
    }
}

fn reading(devices: Vec<DeviceReading>) -> Reading {
    Reading::Devices { devices }
}

fn held(reading: &Reading) -> Held {
    let devices = ["a".to_owned(), "b".to_owned()];
    Held::of(reading, &devices, [TREE].into())
}

#[test]
fn memory_is_back_once_the_tree_is_off_the_device() {
    let before = held(&reading(vec![device("a", 30 * GIB, Some(20 * GIB))]));
    // The process is gone and its bytes come back late.
    let dying = reading(vec![device("a", 30 * GIB, Some(20 * GIB))]);
    let bytes = 20 * GIB;
    assert_eq!(before.proof(&dying, None), Proof::Withheld { bytes });
    let gone = reading(vec![device("a", 40 * GIB, None)]);
    assert_eq!(before.proof(&gone, None), Proof::Returned);
}

#[test]
fn hidden_processes_are_judged_by_the_device_as_a_whole() {
    let before = held(&reading(vec![device("a", 30 * GIB, None)]));
    let now = |used| reading(vec![device("a", used, None)]);
    assert_eq!(
        before.proof(&now(11 * GIB), Some(20 * GIB)),
        Proof::Returned
    );
    let bytes = 10 * GIB;
    let half = before.proof(&now(20 * GIB), Some(20 * GIB));
    assert_eq!(half, Proof::Withheld { bytes });
    // Nobody knows what it held.
    assert!(matches!(before.proof(&now(0), None), Proof::Unknown { .. }));
}

#[test]
fn sleep_that_frees_nothing_is_seen() {
    let awake = reading(vec![device("a", 20 * GIB, Some(20 * GIB))]);
    let bytes = 15 * GIB;
    let asleep = held(&awake).proof(&awake, Some(15 * GIB));
    assert_eq!(asleep, Proof::Withheld { bytes });
}

#[test]
fn every_device_of_a_tensor_parallel_engine_counts() {
    let both = |a, b| reading(vec![device("a", a, Some(a)), device("b", b, Some(b))]);
    let before = held(&both(10, 10));
    assert_eq!(
        before.proof(&both(0, 10), None),
        Proof::Withheld { bytes: 10 }
    );
    assert_eq!(before.proof(&both(0, 0), None), Proof::Returned);
    let lost_one = reading(vec![device("a", 0, None)]);
    assert!(matches!(
        before.proof(&lost_one, None),
        Proof::Unknown { .. }
    ));
    let reason = "GPU is lost".to_owned();
    let unknown = before.proof(
        &Reading::Lost {
            reason: reason.clone(),
        },
        None,
    );
    assert_eq!(unknown, Proof::Unknown { reason });
}

#[test]
fn devices_have_the_names_that_cuda_knows() {
    let second = DeviceReading {
        index: 1,
        ..device("b", 0, None)
    };
    let slice = DeviceReading {
        slice_of: Some("c".to_owned()),
        ..device("MIG-1", 0, None)
    };
    let reading = reading(vec![device("a", 0, None), second, slice]);
    let names = |ids: &[&str]| {
        let ids: Vec<DeviceId> = ids.iter().map(|id| DeviceId::from(*id)).collect();
        reading.names(&ids)
    };
    assert_eq!(names(&["b", "MIG-1"]), ["1", "MIG-1"]);
    assert!(names(&["host"]).is_empty());
}

#[test]
fn no_gpu_has_nothing_to_give_back() {
    let none = judge(Err("no library".to_owned()), false);
    assert!(matches!(none, Reading::NoGpu { .. }));
    assert_eq!(held(&none).proof(&none, None), Proof::Returned);
}

/// Says one thing after the other, and the last one for ever.
struct Script(VecDeque<Result<Vec<DeviceReading>, String>>);

impl Driver for Script {
    fn read(&mut self) -> Result<Vec<DeviceReading>, String> {
        let next = self.0.pop_front();
        let next = next.unwrap_or_else(|| Err("the script is over".to_owned()));
        if self.0.is_empty() {
            self.0.push_back(next.clone());
        }
        next
    }
}

struct Listener(mpsc::UnboundedSender<Reading>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Reading> for Listener {
    type Result = ();

    fn handle(&mut self, reading: Reading, _: &mut Context<Self>) {
        let _ = self.0.send(reading);
    }
}

fn listen(
    script: Vec<Result<Vec<DeviceReading>, String>>,
) -> (actix::Addr<Listener>, mpsc::UnboundedReceiver<Reading>) {
    let (sender, heard) = mpsc::unbounded_channel();
    let listener = Listener(sender).start();
    watch(Script(script.into()), listener.downgrade().recipient());
    (listener, heard)
}

async fn next(heard: &mut mpsc::UnboundedReceiver<Reading>) -> Reading {
    let next = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
    next.expect("a reading within the time")
        .expect("a listener")
}

#[actix_rt::test]
async fn devices_that_vanish_are_lost_and_come_back() {
    let there = vec![device("a", GIB, None)];
    let script = vec![Ok(there.clone()), Err("GPU is lost".to_owned()), Ok(there)];
    let (_listener, mut heard) = listen(script);
    assert!(matches!(next(&mut heard).await, Reading::Devices { .. }));
    assert!(matches!(next(&mut heard).await, Reading::Lost { .. }));
    assert!(matches!(next(&mut heard).await, Reading::Devices { .. }));
}

#[actix_rt::test]
async fn machine_without_a_gpu_is_told_of_once() {
    let (_listener, mut heard) = listen(vec![Err("no library".to_owned())]);
    assert!(matches!(next(&mut heard).await, Reading::NoGpu { .. }));
}
