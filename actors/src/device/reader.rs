//! The thread that reads the devices, and how it is asked to read them now.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use actix::WeakRecipient;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{DeviceReading, Driver, Nvidia, Reading};

/// How often devices are read while nobody asks.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// How often while somebody waits for memory: a reading takes milliseconds, and so should the end of
/// the wait.
pub(super) const SOON: Duration = Duration::from_millis(20);
/// For how long after a question that goes on: when whoever asked has seen enough bytes come back,
/// the planner still lacks the others.
const FOLLOWED: Duration = Duration::from_secs(1);
/// How often a reading is told although no memory changed hands.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Nobody waits longer than this for a driver that hangs.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Asks for readings.
#[derive(Clone, Debug)]
pub struct Reader(mpsc::Sender<Question>);

type Question = oneshot::Sender<Reading>;

/// Reads the devices once.
#[must_use]
pub fn read() -> Reading {
    judge(Nvidia::default().read(), false)
}

/// Reads the devices every so often and whenever it is asked to, for as long as somebody listens.
/// Tells of every change and once a second. Where there is no GPU from the beginning the first reading
/// is the last.
pub fn watch(
    driver: impl Driver + 'static,
    interval: Duration,
    listener: WeakRecipient<Reading>,
) -> Reader {
    let (asks, questions) = mpsc::channel();
    let watched = Watched {
        driver,
        listener,
        told: None,
    };
    let thread = std::thread::Builder::new().name("nvml".to_owned());
    if let Err(error) = thread.spawn(move || watched.live(interval, &questions)) {
        tracing::warn!(%error, "devices are not watched: no thread");
    }
    Reader(asks)
}

/// What the thread has.
struct Watched<D> {
    driver: D,
    listener: WeakRecipient<Reading>,
    told: Option<(Reading, Instant)>,
}

// === impl Reader ===

/// Nobody reads the devices.
impl Default for Reader {
    fn default() -> Self {
        Self(mpsc::channel().0)
    }
}

impl Reader {
    /// What the driver says from now on; what it said before may be a quarter of a second old. The
    /// listener has been sent whatever is new in it.
    pub async fn read(&self) -> Reading {
        let (question, answer) = oneshot::channel();
        // Without a thread the question is dropped, and that is the answer.
        let _ = self.0.send(question);
        match timeout(ANSWERS_WITHIN, answer).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(_)) => Reading::NoGpu {
                reason: "no device is watched".to_owned(),
            },
            Err(_) => Reading::Lost {
                reason: format!("no answer in {} s", ANSWERS_WITHIN.as_secs()),
            },
        }
    }
}

// === impl Watched ===

impl<D: Driver> Watched<D> {
    fn live(mut self, interval: Duration, questions: &mpsc::Receiver<Question>) {
        let mut open: Vec<Question> = Vec::new();
        let mut asked: Option<Instant> = None;
        while let Some(reading) = self.tell() {
            for question in open.drain(..) {
                // Whoever asked may have given up.
                let _ = question.send(reading.clone());
            }
            let is_followed = asked.is_some_and(|at| at.elapsed() < FOLLOWED);
            let pause = if is_followed { SOON } else { interval };
            match questions.recv_timeout(pause) {
                Ok(question) => {
                    open.push(question);
                    open.extend(questions.try_iter());
                    asked = Some(Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// A reading, after the listener was told what is new in it; none if there will be no other.
    fn tell(&mut self) -> Option<Reading> {
        let listener = self.listener.upgrade()?;
        let reading = judge(self.driver.read(), self.told.is_some());
        let is_news = self
            .told
            .as_ref()
            .is_none_or(|(last, at)| at.elapsed() >= HEARTBEAT || !reading.is_same_memory(last));
        if is_news {
            listener.do_send(reading.clone());
            self.told = Some((reading.clone(), Instant::now()));
        }
        (!matches!(reading, Reading::NoGpu { .. })).then_some(reading)
    }
}

/// Without devices there never was a GPU, or it is lost.
pub(super) fn judge(answer: Result<Vec<DeviceReading>, String>, had_gpu: bool) -> Reading {
    let reason = match answer {
        Ok(devices) if devices.is_empty() => "the driver has no device".to_owned(),
        Ok(devices) => return Reading::Devices { devices },
        Err(reason) => reason,
    };
    match had_gpu {
        true => Reading::Lost { reason },
        false => Reading::NoGpu { reason },
    }
}
