use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use kvwarden_policy::{ModelId, cost::Usage};
use proptest::prelude::*;

use super::*;

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

fn everything(store: &Store, by: &[Column]) -> Vec<Total> {
    let later = SystemTime::now() + KEEP;
    store.totals(SystemTime::UNIX_EPOCH, later, by).unwrap()
}

#[test]
fn what_was_used_is_there_after_the_end_and_counts_on_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let counts = Counts::default();
    let log = UsageLog::open(path.clone(), KEEP, counts.clone()).unwrap();
    let (quiet, loud) = (TenantId::from("quiet"), TenantId::from("loud"));
    log.spent(&quiet, &spent("a", 10));
    log.spent(&loud, &spent("a", 100));
    log.spent(&loud, &spent("b", 1_000));
    log.close();
    assert_eq!((counts.kept.get(), counts.dropped.get()), (3, 0));

    let totals = everything(
        &Store::read(&path).unwrap(),
        &[Column::Tenant, Column::Model],
    );
    let of: Vec<_> = totals.iter().map(|total| total.of.join(" ")).collect();
    assert_eq!(of, ["loud b", "loud a", "quiet a"]);
    assert_eq!(totals[0].usage, spent("b", 1_000).usage);

    let today = Day::of(SystemTime::now());
    let log = UsageLog::open(path, KEEP, Counts::default()).unwrap();
    // Nothing if it is midnight right now: that day is over.
    let expected = if log.spent.0 == today { 1_104 } else { 0 };
    assert_eq!(log.spent_on(&loud, today), expected);
    assert_eq!(log.spent_on(&TenantId::from("new"), today), 0);
    assert_eq!(log.spent_on(&loud, Day::default()), 0);
    log.close();
}

#[test]
fn rows_that_may_have_been_written_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path());
    let mut store = Store::open(&path).unwrap();
    let rows: Vec<Row> = (0..3)
        .map(|index| row(SystemTime::now(), "t", index))
        .collect();
    store.append(&rows[..2]).unwrap();
    store.forget_last(2);
    store.append(&rows).unwrap();
    assert_eq!(everything(&store, &[])[0].requests, 3);
    // Another process has names of its own.
    Store::open(&path).unwrap().append(&rows).unwrap();
    assert_eq!(everything(&store, &[])[0].requests, 6);
}

#[test]
fn full_disk_keeps_rows_waiting_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Counts::default();
    let mut writer = Writer {
        path: path(dir.path()),
        keep: KEEP,
        counts: counts.clone(),
        store: None,
        rows: Vec::new(),
        is_failing: false,
        pruned: None,
    };
    let fill = |writer: &mut Writer, rows: u64| {
        let name = "t".repeat(64);
        writer
            .rows
            .extend((0..rows).map(|index| row(SystemTime::now(), &name, index)));
        writer.flush();
    };
    fill(&mut writer, 1);
    let store = writer.store.as_ref().unwrap();
    let pages = store.pages();
    store.limit_pages(pages + 2);
    fill(&mut writer, 1_000);
    assert!(writer.is_failing);
    assert_eq!((counts.kept.get(), writer.rows.len()), (1, 1_000));
    writer.store.as_ref().unwrap().limit_pages(pages + 1_000);
    fill(&mut writer, 1);
    assert!(!writer.is_failing);
    assert_eq!((counts.kept.get(), writer.rows.len()), (1_002, 0));
    let total = everything(writer.store.as_ref().unwrap(), &[]);
    assert_eq!(total[0].requests, 1_002);
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
    let log = UsageLog::open(path.clone(), KEEP, counts.clone()).unwrap();
    log.spent(&TenantId::from("t"), &spent("m", 1));
    log.close();
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
    store.append(&rows).unwrap();
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
        store.append(&rows).unwrap();
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
        store.append(&rows).unwrap();
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
    println!(
        "R6: {rounds} kills, {} rows told of, none lost, none twice",
        told.len()
    );
}
