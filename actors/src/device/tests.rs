//! The driver's answers and what follows from them, with a driver made for it.

use std::{collections::VecDeque, time::Duration};

use actix::{Actor, Context, Handler};
use tokio::sync::mpsc;

use super::{reader::judge, *};

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
    assert_eq!(before.proof(&dying, bytes), Proof::Withheld { bytes });
    let gone = reading(vec![device("a", 40 * GIB, None)]);
    assert_eq!(before.proof(&gone, bytes), Proof::Returned);
}

#[test]
fn hidden_processes_are_judged_by_the_device_as_a_whole() {
    let before = held(&reading(vec![device("a", 30 * GIB, None)]));
    let now = |used| reading(vec![device("a", used, None)]);
    let most = before.proof(&now(11 * GIB), 20 * GIB);
    assert_eq!(most, Proof::Returned);
    let bytes = 10 * GIB;
    let half = before.proof(&now(20 * GIB), 20 * GIB);
    assert_eq!(half, Proof::Withheld { bytes });
}

#[test]
fn every_device_of_a_tensor_parallel_engine_counts() {
    let both = |a, b| reading(vec![device("a", a, Some(a)), device("b", b, Some(b))]);
    let before = held(&both(10, 10));
    let one = before.proof(&both(0, 10), 10);
    assert_eq!(one, Proof::Withheld { bytes: 10 });
    assert_eq!(before.proof(&both(0, 0), 10), Proof::Returned);
    let lost_one = reading(vec![device("a", 0, None)]);
    let unknown = before.proof(&lost_one, 10);
    assert!(matches!(unknown, Proof::Unknown { .. }), "{unknown:?}");
    let reason = "GPU is lost".to_owned();
    let lost = Reading::Lost {
        reason: reason.clone(),
    };
    assert_eq!(before.proof(&lost, 10), Proof::Unknown { reason });
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
    assert_eq!(held(&none).proof(&none, GIB), Proof::Returned);
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

/// Somebody who listens to what follows from the script, and whoever may ask.
struct Watching {
    reader: Reader,
    heard: mpsc::UnboundedReceiver<Reading>,
    _listener: actix::Addr<Listener>,
}

impl Watching {
    fn every(interval: Duration, script: Vec<Result<Vec<DeviceReading>, String>>) -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let listener = Listener(sender).start();
        let recipient = listener.downgrade().recipient();
        Self {
            reader: watch(Script(script.into()), interval, recipient),
            heard,
            _listener: listener,
        }
    }

    async fn next(&mut self) -> Reading {
        let next = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
        next.expect("a reading within the time")
            .expect("a listener")
    }
}

#[actix_rt::test]
async fn devices_that_vanish_are_lost_and_come_back() {
    let there = vec![device("a", GIB, None)];
    let script = vec![Ok(there.clone()), Err("GPU is lost".to_owned()), Ok(there)];
    let mut watching = Watching::every(INTERVAL, script);
    assert!(matches!(watching.next().await, Reading::Devices { .. }));
    assert!(matches!(watching.next().await, Reading::Lost { .. }));
    assert!(matches!(watching.next().await, Reading::Devices { .. }));
}

/// Longer than any test: what is read is read because somebody asked.
const HOUR: Duration = Duration::from_secs(3600);

fn holds(gib: u64) -> Vec<DeviceReading> {
    vec![device("a", gib * GIB, Some(gib * GIB))]
}

#[actix_rt::test]
async fn whoever_waits_for_memory_waits_for_no_interval() {
    let script = [20, 20, 20, 5].map(|gib| Ok(holds(gib))).into();
    let mut watching = Watching::every(HOUR, script);
    let before = held(&watching.next().await);
    let (expected, within) = (15 * GIB, Duration::from_secs(20));
    let withheld = before.withheld(&watching.reader, expected, within).await;
    assert_eq!(withheld, 0);
    // The listener hears of it, too.
    while watching.next().await != reading(holds(5)) {}
}

#[actix_rt::test]
async fn reading_that_was_asked_for_is_no_older_than_the_question() {
    let script = [20, 5].map(|gib| Ok(holds(gib))).into();
    let mut watching = Watching::every(HOUR, script);
    assert_eq!(watching.next().await, reading(holds(20)));
    assert_eq!(watching.reader.read().await, reading(holds(5)));
}

#[actix_rt::test]
async fn sleep_that_frees_nothing_is_seen() {
    let watching = Watching::every(HOUR, vec![Ok(holds(20))]);
    let awake = held(&watching.reader.read().await);
    let withheld = awake.withheld(&watching.reader, 15 * GIB, Duration::ZERO);
    assert_eq!(withheld.await, 15 * GIB);
}

#[actix_rt::test]
async fn machine_without_a_gpu_is_told_of_once_and_nobody_waits_for_its_memory() {
    let mut watching = Watching::every(HOUR, vec![Err("no library".to_owned())]);
    assert!(matches!(watching.next().await, Reading::NoGpu { .. }));
    let nothing = watching.reader.read().await;
    assert!(matches!(nothing, Reading::NoGpu { .. }), "{nothing:?}");
    let withheld = held(&nothing).withheld(&watching.reader, GIB, HOUR).await;
    assert_eq!(withheld, 0);
}
