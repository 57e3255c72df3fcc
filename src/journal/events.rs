//! The event log: a file of what was asked for and what became of engines, for `kvwarden replay`
//! ([`crate::journal::log`] has the format).
//!
//! Whoever has something to say leaves it in a bounded queue and goes on; a thread writes. What finds
//! the queue full, or the disk, is lost and counted. The file and its one predecessor take no more
//! than what they are allowed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use crate::{
    config::EventsConfig,
    journal::log::{Header, Line},
};

/// Lines that wait to be written: a second's worth at the most that one node serves.
const QUEUE: usize = 16 << 10;

/// Bytes that are written at once.
const BURST: usize = 256 << 10;

/// Longest line that a crash may have cut off.
const LONGEST_CUT: u64 = 64 << 10;

/// Pause before another attempt to have the log held.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes lines, and never waits.
#[derive(Debug)]
pub struct EventLog {
    lines: SyncSender<Entry>,
    dropped: Counter,
    began: (Instant, Duration),
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Entry {
    Line(Box<Line>),
    /// Say when all before this is written, and write nothing until the other end is dropped.
    Hold(oneshot::Sender<()>, Receiver<()>),
    End,
}

/// While it exists, nothing is written.
#[derive(Debug)]
pub struct Hold {
    _held: SyncSender<()>,
}

// === impl EventLog ===

impl EventLog {
    /// Goes on with the file, or begins it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn open(config: &EventsConfig, dropped: Counter) -> io::Result<Self> {
        let writer = Writer::open(config, dropped.clone())?;
        let (lines, queue) = sync_channel(QUEUE);
        let thread = thread::Builder::new().name("events".to_owned());
        let thread = thread.spawn(move || writer.run(&queue))?;
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Ok(Self {
            lines,
            dropped,
            began: (now(), since_epoch),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Leaves a line to be written.
    pub fn say(&self, line: Line) {
        if self.lines.try_send(Entry::Line(Box::new(line))).is_err() {
            self.dropped.inc();
        }
    }

    /// A moment in seconds since the Unix epoch. The wall clock is read once, so that its jumps
    /// change no order.
    #[must_use]
    pub fn time(&self, at: Instant) -> f64 {
        let (began, since_epoch) = self.began;
        (since_epoch + at.saturating_duration_since(began)).as_secs_f64()
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.time(now())
    }

    /// Comes back once all that was said is written. Until what it returns is dropped no more is
    /// written, and another process may go on with the file.
    pub async fn hold(&self) -> Option<Hold> {
        let (written, is_written) = oneshot::channel();
        let (held, until) = sync_channel(0);
        // A queue that is full at this moment is emptied soon.
        let mut entry = Entry::Hold(written, until);
        while let Err(TrySendError::Full(back)) = self.lines.try_send(entry) {
            entry = back;
            tokio::time::sleep(PAUSE).await;
        }
        is_written.await.ok()?;
        Some(Hold { _held: held })
    }

    /// Waits until all that was said is written. What is said later is lost.
    pub fn close(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that is gone has ended already.
        let _ = self.lines.send(Entry::End);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the event log was not written to its end");
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    length: u64,
    /// From here on it goes on in a new file.
    longest: u64,
    /// What a new file begins with.
    header: Option<Header>,
    burst: Vec<u8>,
    /// Lines in it.
    lines: u64,
    dropped: Counter,
    is_failing: bool,
}

// === impl Writer ===

impl Writer {
    fn open(config: &EventsConfig, dropped: Counter) -> io::Result<Self> {
        let mut file = create(&config.path)?;
        let length = whole_lines(&mut file)?;
        file.set_len(length)?;
        Ok(Self {
            path: config.path.clone(),
            file,
            length,
            longest: config.max_size / 2,
            header: None,
            burst: Vec::new(),
            lines: 0,
            dropped,
            is_failing: false,
        })
    }

    fn run(mut self, queue: &Receiver<Entry>) {
        while let Ok(entry) = queue.recv() {
            let mut next = Some(entry);
            while let Some(entry) = next {
                match entry {
                    Entry::Line(line) => self.take(&line),
                    Entry::Hold(written, until) => self.hold(written, &until),
                    Entry::End => return self.flush(),
                }
                next = queue.try_recv().ok();
            }
            self.flush();
        }
    }

    fn hold(&mut self, written: oneshot::Sender<()>, until: &Receiver<()>) {
        self.flush();
        let _ = written.send(());
        // Nothing is ever sent: it ends when the sender is dropped.
        let _ = until.recv();
        // Another process may have begun a new file meanwhile.
        match create(&self.path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((length, file)) => (self.length, self.file) = (length, file),
            Err(error) => tracing::warn!(%error, "the event log can't be opened again"),
        }
    }

    fn take(&mut self, line: &Line) {
        if let Line::Header(header) = line {
            self.header = Some(header.clone());
        }
        self.append(line);
        if self.burst.len() >= BURST {
            self.flush();
        }
    }

    fn append(&mut self, line: &Line) {
        let begin = self.burst.len();
        self.lines += 1;
        // Nothing in a line can fail to be JSON; if it did, half of it must not stay.
        if serde_json::to_writer(&mut self.burst, line).is_err() {
            self.burst.truncate(begin);
            return;
        }
        self.burst.push(b'\n');
    }

    /// Writes whole lines, or nothing.
    fn flush(&mut self) {
        match self.write() {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.dropped.inc_by(self.lines);
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "the event log can't be written");
                }
                // What was written of it is the beginning of a line that nobody could read.
                let _ = self.file.set_len(self.length);
            }
        }
        self.burst.clear();
        self.lines = 0;
    }

    fn write(&mut self) -> io::Result<()> {
        if self.length > 0 && self.length + self.burst.len() as u64 > self.longest {
            self.rotate()?;
        }
        self.file.write_all(&self.burst)?;
        self.length += self.burst.len() as u64;
        Ok(())
    }

    /// The predecessor makes room, and a new file says again what there is.
    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, old)?;
        self.file = create(&self.path)?;
        self.length = 0;
        if let Some(header) = self.header.clone() {
            let burst = std::mem::take(&mut self.burst);
            self.append(&Line::Header(header));
            self.burst.extend(burst);
        }
        Ok(())
    }
}

/// Whom it names are an operator's tenants, so it is nobody else's.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(path)
}

/// The length up to the last line's end: what follows was cut off by a crash.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let begin = length.saturating_sub(LONGEST_CUT);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.take(LONGEST_CUT).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(begin, |end| begin + end as u64 + 1))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what happened is written down with the real time"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use crate::journal::log::{self, Refused};

    use super::*;

    fn config(dir: &Path, max_size: u64) -> EventsConfig {
        let path = dir.join("events.jsonl");
        EventsConfig { path, max_size }
    }

    fn header() -> Line {
        Line::Header(Header {
            version: log::VERSION,
            devices: Vec::new(),
            models: Vec::new(),
        })
    }

    fn refused(t: f64) -> Line {
        Line::Refused(Refused {
            t,
            model: "m".to_owned(),
            tenant: "t".to_owned(),
            refused: "queue_full".to_owned(),
        })
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn what_was_said_is_there_after_the_end_and_goes_on_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20);
        fs::write(&config.path, "{\"whole\":1}\n{\"cut o").unwrap();
        let log = EventLog::open(&config, Counter::default()).unwrap();
        log.say(header());
        log.say(refused(1.0));
        log.close();
        let text = read(&config.path);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "{\"whole\":1}");
        assert!(lines[2].contains("queue_full"), "{text}");
    }

    #[actix_web::rt::test]
    async fn while_it_is_held_another_may_write_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20);
        let log = EventLog::open(&config, Counter::default()).unwrap();
        log.say(refused(1.0));
        let hold = log.hold().await;
        log.say(refused(3.0));
        let other = EventLog::open(&config, Counter::default()).unwrap();
        other.say(refused(2.0));
        other.close();
        assert_eq!(read(&config.path).lines().count(), 2);
        drop(hold);
        log.close();
        let text = read(&config.path);
        let times: Vec<_> = ["1.0", "2.0", "3.0"]
            .iter()
            .map(|t| text.find(&format!("\"t\":{t}")))
            .collect();
        assert!(
            times.is_sorted() && times.iter().all(Option::is_some),
            "{text}"
        );
    }

    #[test]
    fn it_stays_within_its_size_and_each_file_has_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 2048);
        let dropped = Counter::default();
        let mut writer = Writer::open(&config, dropped.clone()).unwrap();
        writer.take(&header());
        for t in 0..100 {
            writer.take(&refused(f64::from(t)));
            writer.flush();
        }
        let old = config.path.with_extension("jsonl.1");
        for file in [&config.path, &old] {
            let text = read(file);
            assert!(text.len() <= 1024, "{}", text.len());
            assert!(text.starts_with("{\"kvwarden_log\":1"), "{text}");
            log::read(text.as_bytes()).unwrap();
        }
        assert!(read(&config.path).contains("\"t\":99.0"));
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn full_disk_loses_lines_and_counts_them() {
        let config = EventsConfig {
            path: "/dev/full".into(),
            max_size: 1 << 20,
        };
        let dropped = Counter::default();
        let mut writer = Writer {
            file: create(&config.path).unwrap(),
            path: config.path,
            length: 0,
            longest: config.max_size / 2,
            header: None,
            burst: Vec::new(),
            lines: 0,
            dropped: dropped.clone(),
            is_failing: false,
        };
        writer.take(&refused(1.0));
        writer.take(&refused(2.0));
        writer.flush();
        assert_eq!(dropped.get(), 2);
    }
}
