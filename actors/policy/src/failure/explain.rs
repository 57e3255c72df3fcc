//! Which line of an engine's output explains its end.
//!
//! The last line seldom does: Python's `resource_tracker` warns after everything else, vLLM's API server
//! prints where it learned of its core's end, SGLang's launcher that a child failed. So every line gets
//! a [`Weight`], the heaviest wins, and among lines of the same weight the first: what follows a
//! failure is what others made of it. The corpus beside this file holds what engines really printed.

use super::{Exit, FailureClass, SIGKILL, cause_in, kills_itself};

/// How much a line explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Nothing: a warning, a progress bar, an access log, the source lines of a traceback.
    None,
    /// A line that nothing is known of.
    Unknown,
    /// It was logged as an error, or says that the reason stands elsewhere.
    Error,
    /// An exception, a panic, a process that ended and left no reason.
    Failure,
    /// A process died by a signal, which no exception explains.
    Signal,
    /// It names a known cause.
    Cause,
}

/// Signals and how C libraries and shells report them. They explain themselves and nothing before them.
const SIGNALS: &[&str] = &[
    "(exit code: -",
    "Exit code: -",
    "exit code -",
    "exitcode -",
    "exitcode=-",
    "exitcode: -",
    "returncode: -",
    "Segmentation fault",
    "Illegal instruction",
    "Bus error",
    "Floating point exception",
    "SIGSEGV",
    "SIGILL",
    "SIGBUS",
    "Fatal Python error: ",
    "(core dumped)",
];

/// How programs say that one of their processes ended, or that they end themselves.
const FAILURES: &[&str] = &[
    "died unexpectedly",
    "exited unexpectedly",
    "terminated unexpectedly",
    "terminated abruptly",
    "scheduler is dead",
    "scheduler died",
    "  what():  ",
    "panicked at",
    "panic: ",
    "GGML_ASSERT",
    "Assertion `",
    "Assertion failed",
];

/// Sentences that send the reader elsewhere or only say that something failed.
const REFERENCES: &[&str] = &[
    "(above)",
    "root cause above",
    "see above",
    "stack trace for root cause",
    "Executor failed",
    "Received sigquit from a child process",
    "SIGQUIT received",
    "terminate called",
];

/// Exceptions by which Python ends on purpose.
const ENDINGS: &[&str] = &["SystemExit", "KeyboardInterrupt", "CancelledError"];

/// What links two tracebacks of which the second tells more.
const LINKS: &[&str] = &[
    "During handling of the above exception",
    "The above exception was the direct cause",
];

/// What pydantic says before a line that says what is wrong. Others, Rust's panics among them, end such
/// a line with a colon.
const HEADING: &str = " validation error for ";

/// How the level of a line is written: vLLM and Python's logging, uvicorn, llama.cpp, others.
const LEVELS: &[(&str, Level)] = &[
    ("ERROR", Level::Error),
    ("CRITICAL", Level::Error),
    ("FATAL", Level::Error),
    ("error:", Level::Error),
    ("Error:", Level::Error),
    ("fatal:", Level::Error),
    ("E ", Level::Error),
    ("WARNING", Level::Other),
    ("WARN", Level::Other),
    ("INFO", Level::Other),
    ("DEBUG", Level::Other),
    ("TRACE", Level::Other),
    ("W ", Level::Other),
    ("I ", Level::Other),
    ("D ", Level::Other),
];

/// What explains nothing, wherever it stands.
const NOISE: &[&str] = &[
    "resource_tracker",
    "warnings.warn(",
    "Warning: ",
    "it/s]",
    "s/it]",
    "%|",
    "Traceback (most recent call last)",
    "usage: ",
    "^^^^",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Error,
    Other,
}

/// One sentence on how an engine ended: its exit, its class and the line that explains it.
#[must_use]
pub fn describe(exit: Exit, class: FailureClass, lines: &[String]) -> String {
    let mut sentence = match (exit.signal, exit.code) {
        (Some(SIGKILL), _) if kills_itself(lines) => "killed itself".to_owned(),
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("killed by signal {signal} ({name})"),
            None => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => match exit.signal().and_then(signal_name) {
            Some(name) => format!("exited with code {code} ({name})"),
            None => format!("exited with code {code}"),
        },
        (None, None) => "ended".to_owned(),
    };
    // Crashes and kills are told by the exit status already.
    if !matches!(
        class,
        FailureClass::Crashed | FailureClass::Killed | FailureClass::Stopped
    ) {
        sentence += &format!(": {class}");
    }
    // Whoever is killed by a signal has nothing to say about it; its last line is of something else.
    let least = match exit.signal {
        Some(_) => Weight::Error,
        None => Weight::Unknown,
    };
    if let Some((at, _)) = explanation(lines, class).filter(|(_, weight)| *weight >= least) {
        let line = &with_detail(&lines[at..]);
        sentence += &format!(" ({line})");
        if let Some((signal, name)) = signal_in(line).and_then(|n| Some((n, signal_name(n)?))) {
            sentence += &format!("; -{signal} is {name}");
        }
    }
    sentence
}

/// The first of these lines without what its logger put before it, and with the next one where what is
/// wrong stands there.
fn with_detail(lines: &[String]) -> String {
    let mut texts = lines.iter().map(|line| message(line).1.trim());
    let line = texts.next().unwrap_or_default().to_owned();
    match texts.next() {
        Some(detail) if line.ends_with(':') || line.contains(HEADING) => {
            format!("{}: {detail}", line.trim_end_matches(':'))
        }
        Some(_) | None => line,
    }
}

/// Which line explains an end of this class best, and how much.
fn explanation(lines: &[String], class: FailureClass) -> Option<(usize, Weight)> {
    let mut best: Option<(usize, Weight)> = None;
    // Whether the newest failure is the best so far, and whether the next one tells more of it.
    let (mut is_newest, mut is_linked) = (false, false);
    for (at, line) in lines.iter().enumerate() {
        is_linked |= LINKS.iter().any(|link| line.contains(link));
        let weight = if cause_in(line) == Some(class) {
            Weight::Cause
        } else {
            of_text(line)
        };
        let before = best.map_or(Weight::None, |(_, before)| before);
        let tells_more = weight == Weight::Failure && is_linked && is_newest;
        let is_last_unknown = weight == Weight::Unknown && before == Weight::Unknown;
        let is_better = weight > before || tells_more && before == weight || is_last_unknown;
        if is_better {
            best = Some((at, weight));
        }
        if weight >= Weight::Failure {
            (is_newest, is_linked) = (is_better, false);
        }
    }
    best
}

/// How much a line explains by itself.
#[must_use]
pub fn weigh(line: &str) -> Weight {
    if cause_in(line).is_some() {
        Weight::Cause
    } else {
        of_text(line)
    }
}

fn of_text(line: &str) -> Weight {
    let has = |signs: &[&str]| signs.iter().any(|sign| line.contains(sign));
    let (level, text) = message(line);
    if has(NOISE) || text.is_empty() {
        Weight::None
    } else if has(REFERENCES) {
        Weight::Error
    } else if has(SIGNALS) {
        Weight::Signal
    } else if has(FAILURES) || is_exception(text) {
        Weight::Failure
    } else if text.starts_with([' ', '\t']) {
        Weight::None
    } else {
        match level {
            Some(Level::Error) => Weight::Error,
            Some(Level::Other) => Weight::None,
            None => Weight::Unknown,
        }
    }
}

/// The last line of a traceback: `package.SomeError: what is wrong`.
fn is_exception(text: &str) -> bool {
    let (path, _) = text.split_once(':').unwrap_or((text, ""));
    let name = path.rsplit('.').next().unwrap_or(path);
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    path.chars().all(is_path)
        && !ENDINGS.contains(&name)
        && ["Error", "Exception", "Refused", "Timeout", "Died"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// A line's level, and what is left without process, level, time and place.
fn message(line: &str) -> (Option<Level>, &str) {
    let mut rest = line.trim_end();
    let mut level = None;
    loop {
        let shorter = if let Some((found, after)) = level_of(rest).filter(|_| level.is_none()) {
            level = Some(found);
            after
        } else {
            without_prefix(rest)
        };
        if shorter.len() == rest.len() {
            return (level, rest);
        }
        rest = shorter;
    }
}

fn level_of(text: &str) -> Option<(Level, &str)> {
    // glog, and PyTorch after it: `W1130 20:54:32.955000 20409 file.py:29] ..`.
    if let Some((head, after)) = text.split_once(' ')
        && head.len() == 5
        && head[1..].chars().all(|c| c.is_ascii_digit())
    {
        let level = match head.as_bytes()[0] {
            b'E' | b'F' => Some(Level::Error),
            b'W' | b'I' => Some(Level::Other),
            _ => None,
        };
        return level.map(|level| (level, after));
    }
    LEVELS.iter().find_map(|(name, level)| {
        let after = text.strip_prefix(name)?;
        let is_whole = name.ends_with([' ', ':']) || after.starts_with([' ', ':']);
        is_whole.then(|| (*level, after.trim_start_matches([':', ' '])))
    })
}

/// Without `(EngineCore pid=12)`, `[core.py:718]`, `[2026-01-01 10:00:00 TP0]` or a time before the message.
fn without_prefix(text: &str) -> &str {
    let bracketed = |open: char, close: char| {
        let (inside, after) = text.strip_prefix(open)?.split_once(close)?;
        let is_short = inside.len() < 60 && inside.contains(|c: char| c.is_ascii_digit());
        // One space parts it from the message; more of them are the message's own.
        is_short.then(|| after.strip_prefix(' ').unwrap_or(after))
    };
    let time = || {
        let (word, after) = text.split_once(' ')?;
        let is_time = word.len() >= 5
            && word.starts_with(|c: char| c.is_ascii_digit())
            && word.contains(['.', ':', '-'])
            && word
                .chars()
                .all(|c| c.is_ascii_digit() || ".:-/,TZ".contains(c));
        is_time.then_some(after)
    };
    bracketed('(', ')')
        .or_else(|| bracketed('[', ']'))
        .or_else(time)
        .unwrap_or(text)
}

/// The signal that a line says a process died by.
fn signal_in(line: &str) -> Option<i32> {
    let from = |marker: &str| {
        let at = line.to_ascii_lowercase().find(marker)? + marker.len();
        let digits = line[at..]
            .trim_start_matches([':', '=', ' '])
            .strip_prefix('-')?;
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    ["exit code", "exitcode", "returncode"]
        .iter()
        .find_map(|marker| from(marker))
}

/// A signal's name, and what it says where one is known.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL: the CPU refused an instruction",
        6 => "SIGABRT: it gave up by itself",
        7 => "SIGBUS: memory was not there, as where /dev/shm is full",
        8 => "SIGFPE: an impossible calculation",
        9 => "SIGKILL: killed from outside, as by the kernel when memory runs out",
        11 => "SIGSEGV: it used memory that it does not have",
        15 => "SIGTERM",
        _ => return None,
    })
}
