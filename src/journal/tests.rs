use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use kvwarden_actors::Spent;
use kvwarden_policy::{ModelId, TenantId, cost::Usage};
use proptest::prelude::*;

use super::{
    log::{Header, Line, Refused},
    store::Row,
    *,
};

/// Set for the process that writes until it is killed.
const WRITE_TO: &str = "KVWARDEN_TEST_USAGE";

const KEEP: Duration = Duration::from_secs(86_400);

fn spent(model: &str, prompt_tokens: u64) -> Spent {
    Spent {
        model: ModelId::from(model),
        usage: Usage {
            prompt_tokens,
            cached_tokens: 1,
            completion_tokens: 2,
        },
        is_exact: true,
    }
}

fn row(at: SystemTime, tenant: &str, prompt_tokens: u64) -> Row {
    Row {
        at,
        tenant: tenant.to_owned(),
        model: "m".to_owned(),
        usage: spent("m", prompt_tokens).usage,
        is_exact: true,
    }
}

fn header() -> Line {
    Line::Header(Header {
        version: log::VERSION,
        devices: Vec::new(),
        models: Vec::new(),
    })
}

fn refused(t: u32, tenant: &str) -> Line {
    Line::Refused(Refused {
        t: f64::from(t),
        model: "m".to_owned(),
        tenant: tenant.to_owned(),
        refused: "queue_full".to_owned(),
    })
}

fn settings(path: PathBuf) -> Settings {
    Settings {
        path,
        keep_usage: Some(KEEP),
        max_events: Some(1 << 20),
        export: None,
    }
}

fn open(settings: Settings, counts: &Counts) -> Journal {
    Journal::open(settings, counts.clone(), Counter::default()).unwrap()
}

fn writer(path: PathBuf, counts: &Counts, events_dropped: &Counter) -> Writer {
    Writer {
        path,
        keep_usage: Some(KEEP),
        max_events: 1 << 20,
        counts: counts.clone(),
        events_dropped: events_dropped.clone(),
        store: None,
        batch: Batch::default(),
        is_failing: false,
        pruned: None,
    }
}

fn lines(store: &Store) -> Vec<String> {
    let mut lines = Vec::new();
    let read = store.events(|line| {
        lines.push(line.to_owned());
        Ok::<_, StoreError>(())
    });
    read.unwrap();
    lines
}

/// The lines' times, in the lines' order.
fn times(store: &Store) -> Vec<u64> {
    let lines = lines(store);
    let lines = lines.iter().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["t"].as_f64()
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as written"
    )]
    let whole = lines.map(|t| t as u64);
    whole.collect()
}

fn everything(store: &Store, by: &[Column]) -> Vec<Total> {
    let later = SystemTime::now() + KEEP;
    store.totals(SystemTime::UNIX_EPOCH, later, by).unwrap()
}

#[test]
fn what_was_used_is_there_after_the_end_and_counts_on_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let counts = Counts::default();
    let journal = open(settings(path.clone()), &counts);
    let log = journal.ledger();
    let (quiet, loud) = (TenantId::from("quiet"), TenantId::from("loud"));
    log.spent(&quiet, &spent("a", 10));
    log.spent(&loud, &spent("a", 100));
    log.spent(&loud, &spent("b", 1_000));
    journal.close();
    assert_eq!((counts.kept.get(), counts.dropped.get()), (3, 0));

    let totals = everything(
        &Store::read(&path).unwrap(),
        &[Column::Tenant, Column::Model],
    );
    let of: Vec<_> = totals.iter().map(|total| total.of.join(" ")).collect();
    assert_eq!(of, ["loud b", "loud a", "quiet a"]);
    assert_eq!(totals[0].usage, spent("b", 1_000).usage);

    let today = Day::of(SystemTime::now());
    let journal = open(settings(path), &Counts::default());
    let log = journal.usage.clone().unwrap();
    // Nothing if it is midnight right now: that day is over.
    let expected = if log.spent.0 == today { 1_104 } else { 0 };
    assert_eq!(log.spent_on(&loud, today), expected);
    assert_eq!(log.spent_on(&TenantId::from("new"), today), 0);
    assert_eq!(log.spent_on(&loud, Day::default()), 0);
    journal.close();
}

#[test]
fn rows_that_may_have_been_written_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let mut store = Store::open(&path).unwrap();
    let rows: Vec<Row> = (0..3)
        .map(|index| row(SystemTime::now(), "t", index))
        .collect();
    store.append(&rows[..2], &[], 0).unwrap();
    store.forget_last(2);
    store.append(&rows, &[], 0).unwrap();
    assert_eq!(everything(&store, &[])[0].requests, 3);
    // Another process has names of its own.
    Store::open(&path).unwrap().append(&rows, &[], 0).unwrap();
    assert_eq!(everything(&store, &[])[0].requests, 6);
}

#[test]
fn full_disk_keeps_rows_waiting_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let events_dropped = Counter::default();
    let queue = Queue::default();
    let mut writer = writer(path(dir.path()), &counts, &events_dropped);
    let fill = |writer: &mut Writer, rows: u64| {
        let name = "t".repeat(64);
        for index in 0..rows {
            assert!(queue.push_usage(row(SystemTime::now(), &name, index)));
            assert!(queue.push_event(refused(0, &name)));
        }
        writer.flush(&queue);
    };
    fill(&mut writer, 1);
    let store = writer.store.as_ref().unwrap();
    let pages = store.pages();
    store.limit_pages(pages + 2);
    fill(&mut writer, 1_000);
    assert!(writer.is_failing);
    let waiting = &writer.batch;
    assert_eq!((waiting.usage.len(), waiting.events.len()), (1_000, 1_000));
    assert_eq!(counts.kept.get(), 1);
    // Serving goes on, and what comes meanwhile waits behind it.
    fill(&mut writer, 1);
    assert_eq!(writer.batch.usage.len(), 1_000);
    writer.store.as_ref().unwrap().limit_pages(pages + 1_000);
    fill(&mut writer, 1);
    writer.flush(&queue);
    assert!(!writer.is_failing);
    assert_eq!((counts.kept.get(), writer.batch.usage.len()), (1_003, 0));
    let store = writer.store.as_ref().unwrap();
    assert_eq!(everything(store, &[])[0].requests, 1_003);
    assert_eq!(lines(store).len(), 1_003);
    assert_eq!(events_dropped.get(), 0);
}

#[test]
fn old_rows_that_stay_cost_no_new_row_a_second_write() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let queue = Queue::default();
    let mut writer = writer(path(dir.path()), &counts, &Counter::default());
    let now = SystemTime::now();
    let mut store = Store::open(&writer.path).unwrap();
    store
        .append(&[row(now - 2 * KEEP, "old", 1)], &[], 0)
        .unwrap();
    store.refuse_to_forget();
    writer.store = Some(store);
    assert!(queue.push_usage(row(now, "new", 1)));
    for _ in 0..3 {
        writer.flush(&queue);
    }
    assert_eq!((counts.kept.get(), writer.batch.usage.len()), (1, 0));
    let store = writer.store.as_ref().unwrap();
    assert_eq!(everything(store, &[])[0].requests, 2);
}

#[test]
fn file_that_is_no_database_keeps_nobody_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    std::fs::write(
        &path,
        "not a database, but long enough to be looked at".repeat(100),
    )
    .unwrap();
    let counts = Counts::default();
    let journal = open(settings(path.clone()), &counts);
    journal.ledger().spent(&TenantId::from("t"), &spent("m", 1));
    journal.close();
    assert_eq!((counts.kept.get(), counts.dropped.get()), (0, 1));
    assert!(
        std::fs::read(&path).unwrap().starts_with(b"not a"),
        "left as it was"
    );
}

#[test]
fn rows_that_are_too_old_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&path(dir.path())).unwrap();
    let now = SystemTime::now();
    let rows = [row(now - 2 * KEEP, "old", 1), row(now, "new", 1)];
    store.append(&rows, &[], 0).unwrap();
    store.forget_before(now - KEEP).unwrap();
    let totals = everything(&store, &[Column::Tenant]);
    assert_eq!(totals.len(), 1);
    assert_eq!(totals[0].of, ["new"]);
}

#[test]
fn database_of_another_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    Store::open(&path).unwrap().set_version(7);
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("layout 7"), "{error}");
}

#[test]
fn database_of_the_layout_before_keeps_its_rows_and_takes_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("fixtures/layout_1.sql"))
        .unwrap();
    let before = everything(&Store::read(&path).unwrap(), &[Column::Tenant]);
    assert_eq!(lines(&Store::read(&path).unwrap()), Vec::<String>::new());
    let mut store = Store::open(&path).unwrap();
    assert_eq!(everything(&store, &[Column::Tenant]), before);
    assert_eq!((before[0].of[0].as_str(), before[0].requests), ("loud", 2));
    let new = [row(SystemTime::now(), "new", 1)];
    store.append(&new, &[refused(1, "new")], 1 << 20).unwrap();
    // A process of before the change goes on with it while it is taken over from.
    let statement = "INSERT INTO usage VALUES (1, 0, 1796072471611, 'elder', 'm', 1, 0, 1, 1)";
    assert_eq!(old.execute(statement, []).unwrap(), 1);
    let store = Store::open(&path).unwrap();
    assert_eq!(everything(&store, &[])[0].requests, 5);
    assert_eq!(times(&store), [1]);
}

#[test]
fn two_processes_write_to_one_log_and_the_last_one_exports_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.jsonl");
    let settings = Settings {
        export: Some(file.clone()),
        ..settings(path(dir.path()))
    };
    let (predecessor, successor) = (
        open(settings.clone(), &Counts::default()),
        open(settings, &Counts::default()),
    );
    let say = |journal: &Journal, t| journal.events().unwrap().say(refused(t, "t"));
    successor.events().unwrap().say(header());
    for t in 0..100 {
        say(&predecessor, 2 * t);
        say(&successor, 2 * t + 1);
    }
    predecessor.close();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    successor.close_and_export();
    let store = Store::read(&path(dir.path())).unwrap();
    let mut all = times(&store);
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
    let exported = std::fs::read_to_string(&file).unwrap();
    assert_eq!(exported.lines().collect::<Vec<_>>(), lines(&store));
    read_events(&file).unwrap();
    read_events(&path(dir.path())).unwrap();
}

#[test]
fn log_stays_within_its_size_and_keeps_its_last_header() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&path(dir.path())).unwrap();
    let most = 2_048;
    store.append(&[], &[header(), header()], most).unwrap();
    for t in 0..100 {
        store.append(&[], &[refused(t, "t")], most).unwrap();
    }
    let lines = lines(&store);
    assert!(lines[0].starts_with("{\"kvwarden_log\":1"), "{lines:?}");
    let bytes: usize = lines[1..].iter().map(|line| line.len() + 1).sum();
    assert!((1_900..2_100).contains(&bytes), "{bytes}");
    let times = times(&store);
    assert_eq!(times.len(), lines.len() - 1);
    assert_eq!(times.last(), Some(&99));
    read_events(&path(dir.path())).unwrap();
}

#[test]
fn oldest_lines_that_stay_keep_the_header_they_were_written_under() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&path(dir.path())).unwrap();
    let line = |text: String| serde_json::from_str::<Line>(&text).unwrap();
    let header = |model: &str| {
        let model = format!(r#"{{"id":"{model}","bytes":{{}},"costs":{{}}}}"#);
        line(format!(
            r#"{{"kvwarden_log":1,"devices":[],"models":[{model}]}}"#
        ))
    };
    let request = |model: &str| {
        line(format!(
            r#"{{"t":1,"model":"{model}","tenant":"x","prompt_tokens":1,"output_tokens":1}}"#
        ))
    };
    for model in ["a", "b", "c"] {
        store.append(&[], &[header(model)], 2_048).unwrap();
        for _ in 0..20 {
            store.append(&[], &[request(model)], 2_048).unwrap();
        }
    }
    let headers = lines(&store);
    let headers = headers.iter().filter(|line| line.contains("kvwarden_log"));
    assert_eq!(headers.count(), 2, "those of `b` and `c`");
    let (world, _) = read_events(&path(dir.path())).unwrap();
    assert_eq!(world.models.len(), 2);
}

#[test]
fn refusals_that_fill_the_queue_cost_no_usage() {
    let queue = Queue::default();
    let taken = (0..1 << 20).filter(|t| queue.push_event(refused(*t, "loud")));
    assert!(taken.count() < 1 << 20);
    assert!(queue.push_usage(row(SystemTime::now(), "quiet", 1)));
}

#[test]
fn file_that_cannot_be_written_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        export: Some("/proc/nobody/can/write.jsonl".into()),
        ..settings(path(dir.path()))
    };
    let error = Journal::open(settings, Counts::default(), Counter::default()).unwrap_err();
    assert!(
        format!("{error:#}").contains("cannot write /proc"),
        "{error:#}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn totals_are_the_sums_of_the_rows(tokens in prop::collection::vec((0..3_u8, 0..1_000_u64), 0..50)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&path(dir.path())).unwrap();
        let rows: Vec<Row> = tokens
            .iter()
            .map(|(tenant, tokens)| row(SystemTime::now(), &tenant.to_string(), *tokens))
            .collect();
        store.append(&rows, &[], 0).unwrap();
        for total in everything(&store, &[Column::Tenant]) {
            let of = tokens.iter().filter(|(tenant, _)| total.of[0] == tenant.to_string());
            prop_assert_eq!(total.usage.prompt_tokens, of.map(|(_, tokens)| tokens).sum::<u64>());
        }
    }
}

/// Not a test by itself: what [`killed_writer_loses_no_row_that_it_told_of`] kills.
#[test]
fn writer_that_is_killed() {
    let Some(path) = std::env::var_os(WRITE_TO) else {
        return;
    };
    let mut store = Store::open(Path::new(&path)).unwrap();
    let process = std::process::id();
    for batch in 0.. {
        let rows: Vec<Row> = (0..1 + batch % 7)
            .map(|index| {
                row(
                    SystemTime::now(),
                    &format!("{process} {batch} {index}"),
                    batch,
                )
            })
            .collect();
        let events = rows.iter().map(|row| refused(0, &row.tenant));
        let events: Vec<_> = events.collect();
        store.append(&rows, &events, 1 << 40).unwrap();
        println!("kept {process} {batch} {}", rows.len());
        std::io::stdout().flush().unwrap();
    }
}

/// Goal R6. The long count is for a person to ask for.
#[test]
fn killed_writer_loses_no_row_that_it_told_of() {
    let rounds: usize = match std::env::var("KVWARDEN_CHAOS").as_deref() {
        Ok("full") => 500,
        _ => 10,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let mut told = HashSet::new();
    for round in 0..rounds {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "journal::tests::writer_that_is_killed",
                "--nocapture",
            ])
            .env(WRITE_TO, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut heard = 0;
        let mut hear = |line: String| {
            let Some((_, kept)) = line.split_once("kept ") else {
                return 0;
            };
            let words: Vec<&str> = kept.split(' ').collect();
            let rows: u32 = words[2].parse().unwrap();
            told.extend((0..rows).map(|index| format!("{} {} {index}", words[0], words[1])));
            1
        };
        while heard <= round % 20 {
            heard += hear(lines.next().unwrap().unwrap());
        }
        writer.kill().unwrap();
        for line in lines {
            hear(line.unwrap());
        }
        writer.wait().unwrap();
    }
    let store = Store::read(&path).unwrap();
    let kept = everything(&store, &[Column::Tenant]);
    assert!(kept.iter().all(|total| total.requests == 1), "none twice");
    let kept: HashSet<String> = kept.into_iter().flat_map(|total| total.of).collect();
    let lost: Vec<_> = told.difference(&kept).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // A line is there if and only if its row is.
    let lines = lines(&store);
    let tenants: HashSet<String> = lines
        .iter()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["tenant"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(lines.len(), tenants.len(), "none twice");
    assert_eq!(tenants, kept);
    println!(
        "R6: {rounds} kills, {} rows told of, none lost, none twice",
        told.len()
    );
}
