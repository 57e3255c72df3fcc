//! The database: one row for each request that reached an engine and one for each line of the event
//! log, in SQLite's WAL mode, so that several processes may read and write it and a crash costs no
//! row that was committed.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime},
};

use kvwarden_policy::cost::Usage;
use rusqlite::{Connection, OpenFlags, Row as SqlRow, Transaction, TransactionBehavior, params};

use super::log::Line;

/// What each layout of the tables adds to the one before it; `user_version` says which one a
/// database has.
///
/// `process` and `n` name a row for ever, so that one which is written again, since nobody knew
/// whether the first time counted, stays one.
const LAYOUTS: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS usage (
        process INTEGER NOT NULL,
        n INTEGER NOT NULL,
        at INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        model TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        is_exact INTEGER NOT NULL,
        PRIMARY KEY (process, n)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS usage_at ON usage (at);",
    // `position` is where a line ends in the log of all lines that ever were, in bytes: the order of
    // the lines, and what tells how many bytes they take. A header has no time.
    "CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        process INTEGER NOT NULL,
        n INTEGER NOT NULL,
        at INTEGER,
        line TEXT NOT NULL,
        UNIQUE (process, n)
    );
    CREATE INDEX events_at ON events (at);",
];

/// The layout of this version; one that is newer is not touched.
const VERSION: i64 = 2;

/// How long another process may hold the file.
const BUSY: Duration = Duration::from_secs(5);

/// What a request used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When it ended.
    pub at: SystemTime,
    /// Whose it was.
    pub tenant: String,
    /// For which model.
    pub model: String,
    /// How much.
    pub usage: Usage,
    /// The engine counted it; otherwise its answer was cut and this is an estimate.
    pub is_exact: bool,
}

/// What several rows came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// The values they share, as many as were asked for.
    pub of: Vec<String>,
    /// How many there are.
    pub requests: u64,
    /// What they used together.
    pub usage: Usage,
}

/// What totals are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Column {
    /// Whose requests.
    Tenant,
    /// For which model.
    Model,
    /// On which UTC day.
    Day,
}

/// Why the database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What SQLite says.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A newer kvwarden wrote it.
    #[error(
        "it has layout {0}, and this kvwarden knows layout {VERSION}: it was written by another version"
    )]
    Version(i64),
    /// A line that is no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// An open database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    process: i64,
    /// The names of the next rows of usage and of events.
    next: (i64, i64),
}

// === impl Store ===

impl Store {
    /// Opens a database to write to, or makes one.
    ///
    /// # Errors
    /// When it is no database of ours, or the disk does not let us.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&mut connection)?;
        Ok(Self {
            connection,
            process: rand::random(),
            next: (0, 0),
        })
    }

    /// Opens a database to read from, while a server may write to it.
    ///
    /// # Errors
    /// When there is none, or it is none of ours.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(BUSY)?;
        match version(&connection)? {
            1..=VERSION => Ok(Self {
                connection,
                process: 0,
                next: (0, 0),
            }),
            version => Err(StoreError::Version(version)),
        }
    }

    /// Writes all rows and lines or none, and of the lines forgets the oldest as long as there are
    /// more than so many bytes; the header that counts for the oldest line that stays, stays. After an
    /// error, the next call has to begin with the same ones.
    ///
    /// # Errors
    /// When the disk is full or the file is locked.
    pub(super) fn append(
        &mut self,
        usage: &[Row],
        events: &[Line],
        max_events: u64,
    ) -> Result<(), StoreError> {
        if usage.is_empty() && events.is_empty() {
            return Ok(());
        }
        let (row, line) = self.next;
        let immediate = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(immediate)?;
        insert_usage(&transaction, self.process, row, usage)?;
        if !events.is_empty() {
            insert_events(&transaction, self.process, line, events)?;
            let oldest = "WITH bound (cut) AS (SELECT MAX(position) - ?1 FROM events)
                DELETE FROM events WHERE position <= (SELECT cut FROM bound)
                AND position IS NOT (SELECT MAX(position) FROM events, bound
                    WHERE at IS NULL AND position <= cut)";
            transaction.execute(oldest, [signed(max_events)])?;
        }
        transaction.commit()?;
        let counts = (usage.len() as u64, events.len() as u64);
        self.next = (row + signed(counts.0), line + signed(counts.1));
        Ok(())
    }

    /// The event log, line by line.
    ///
    /// # Errors
    /// When the file can't be read, or where `each` says so.
    pub fn events<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let sqlite = |error| E::from(StoreError::Sqlite(error));
        if version(&self.connection)? < 2 {
            return Ok(());
        }
        let all = "SELECT line FROM events ORDER BY position";
        let mut query = self.connection.prepare(all).map_err(sqlite)?;
        let mut rows = query.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let line = row.get_ref(0).and_then(|line| Ok(line.as_str()?));
            each(line.map_err(sqlite)?)?;
        }
        Ok(())
    }

    /// Removes what is older.
    ///
    /// # Errors
    /// As with [`Self::append`].
    pub fn forget_before(&self, moment: SystemTime) -> Result<(), StoreError> {
        self.connection
            .execute("DELETE FROM usage WHERE at < ?1", [millis(moment)])?;
        Ok(())
    }

    /// Tokens by tenant from that moment on.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn spent_since(&self, moment: SystemTime) -> Result<HashMap<String, u64>, StoreError> {
        let totals = self.totals(moment, SystemTime::now(), &[Column::Tenant])?;
        let spent = totals.into_iter().filter_map(|total| {
            let tokens = total.usage.total();
            Some((total.of.into_iter().next()?, tokens))
        });
        Ok(spent.collect())
    }

    /// What was used between two moments, by each value of some columns: in the order of the days, or
    /// the largest first.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn totals(
        &self,
        since: SystemTime,
        until: SystemTime,
        by: &[Column],
    ) -> Result<Vec<Total>, StoreError> {
        let columns: Vec<&str> = by.iter().map(|column| column.sql()).collect();
        let values: String = columns.iter().map(|column| format!(", {column}")).collect();
        let group = match columns.is_empty() {
            true => String::new(),
            false => format!("GROUP BY {}", columns.join(", ")),
        };
        let day = by.iter().position(|column| *column == Column::Day);
        let largest = "SUM(prompt_tokens + output_tokens) DESC";
        let order = match day {
            Some(day) => format!("{}, {largest}", day + 5),
            None => largest.to_owned(),
        };
        let mut query = self.connection.prepare(&format!(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(cached_tokens), 0),
                 COALESCE(SUM(output_tokens), 0){values}
             FROM usage WHERE at >= ?1 AND at < ?2 {group} ORDER BY {order}"
        ))?;
        let rows = query.query_map([millis(since), millis(until)], |row| total(row, by.len()))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The moment that a date, or a date and a time, of UTC means.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn moment(&self, text: &str) -> Result<Option<SystemTime>, StoreError> {
        let seconds: Option<i64> =
            self.connection
                .query_row("SELECT unixepoch(?1)", [text], |row| row.get(0))?;
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)))
    }
}

// === impl Column ===

impl Column {
    fn sql(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Day => "date(at / 1000, 'unixepoch')",
        }
    }
}

/// Adds what the database lacks, as one step that another process does not see half of.
fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version(&transaction)?;
    if version == VERSION {
        return Ok(());
    }
    let layouts = usize::try_from(version).ok();
    let missing = layouts.and_then(|layouts| LAYOUTS.get(layouts..));
    for layout in missing.ok_or(StoreError::Version(version))? {
        transaction.execute_batch(layout)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

fn insert_usage(
    transaction: &Transaction<'_>,
    process: i64,
    first: i64,
    rows: &[Row],
) -> Result<(), StoreError> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for (n, row) in (first..).zip(rows) {
        let Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        } = row.usage;
        insert.execute(params![
            process,
            n,
            millis(row.at),
            row.tenant,
            row.model,
            signed(prompt_tokens),
            signed(cached_tokens),
            signed(completion_tokens),
            row.is_exact,
        ])?;
    }
    Ok(())
}

fn insert_events(
    transaction: &Transaction<'_>,
    process: i64,
    first: i64,
    lines: &[Line],
) -> Result<(), StoreError> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO events
         SELECT COALESCE(MAX(position), 0) + ?1, ?2, ?3, ?4, ?5 FROM events",
    )?;
    for (n, line) in (first..).zip(lines) {
        let text = serde_json::to_string(line)?;
        let length = signed(text.len() as u64 + 1);
        insert.execute(params![length, process, n, line.millis(), text])?;
    }
    Ok(())
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

fn total(row: &SqlRow<'_>, columns: usize) -> rusqlite::Result<Total> {
    let count = |at: usize| row.get::<_, i64>(at).map(i64::unsigned_abs);
    Ok(Total {
        requests: count(0)?,
        usage: Usage {
            prompt_tokens: count(1)?,
            cached_tokens: count(2)?,
            completion_tokens: count(3)?,
        },
        of: (4..4 + columns)
            .map(|at| row.get(at))
            .collect::<Result<_, _>>()?,
    })
}

/// SQLite's integers end at 2^63, which no count here reaches.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(moment: SystemTime) -> i64 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
impl Store {
    /// As if the last rows' transaction had failed, for all that is known.
    pub(super) fn forget_last(&mut self, rows: i64) {
        self.next.0 -= rows;
    }

    pub(super) fn pages(&self) -> i64 {
        let pages = self
            .connection
            .pragma_query_value(None, "page_count", |row| row.get(0));
        pages.unwrap()
    }

    /// SQLite's own stand-in for a disk that is full.
    pub(super) fn limit_pages(&self, pages: i64) {
        let limit = format!("PRAGMA max_page_count = {pages}");
        self.connection.execute_batch(&limit).unwrap();
    }

    /// No row of usage can be removed from now on.
    pub(super) fn refuse_to_forget(&self) {
        let trigger = "CREATE TRIGGER keep BEFORE DELETE ON usage
            BEGIN SELECT RAISE(ABORT, 'kept'); END";
        self.connection.execute_batch(trigger).unwrap();
    }

    pub(super) fn set_version(&self, version: i64) {
        self.connection
            .pragma_update(None, "user_version", version)
            .unwrap();
    }
}
