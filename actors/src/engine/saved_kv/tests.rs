//! Which snapshots are believed and which stay. That slots come back is shown with the real engine.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use kvwarden_policy::{lifecycle::SleepLevels, scheduling::Capacity};
use tempfile::TempDir;

use super::*;
use crate::engine::EngineFlags;

/// A model file and a place for its slots.
struct Bench {
    dir: TempDir,
    launch: Launch,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    fs::write(&model, b"GGUF and weights").unwrap();
    let flags = EngineFlags {
        capacity: Capacity::of_engine(4, 2048, None),
        max_model_len: Some(2048),
        dtype: None,
        tensor_parallel: 1,
        gpu_memory_utilization: None,
        threads: Some(1),
        kv_cache_bytes: None,
        kv_cpu_bytes: None,
        kv_ssd_bytes: Some(1 << 20),
        levels: SleepLevels::default(),
        own: None,
        extra_args: Vec::new(),
        env: BTreeMap::new(),
    };
    let launch = Launch {
        kind: crate::engine::EngineKind::LlamaCpp,
        program: PathBuf::from("/env/bin/engine"),
        build: "1".to_owned(),
        prefix: Vec::new(),
        model: model.display().to_string(),
        served_name: "m".to_owned(),
        flags,
        footprint: None,
        gpus: Vec::new(),
        cores: 64,
        kv_dir: dir.path().join("kv/m"),
        start_timeout: WITHIN,
        stop_grace: WITHIN,
    };
    prepare(&launch).unwrap();
    Bench { dir, launch }
}

/// Writes a slot's file and says what it is.
fn saved(dir: &Path, id: u64, bytes: usize) -> Slot {
    let file = dir.join(Slot::file(id));
    fs::write(&file, vec![u8::try_from(id).unwrap(); bytes]).unwrap();
    let (bytes, checksum) = manifest::measure(&file).unwrap();
    Slot {
        id,
        tokens: bytes,
        bytes,
        checksum,
        seconds: 0.01,
    }
}

impl Bench {
    fn origin(&self) -> Origin {
        Origin::of(&self.launch).unwrap()
    }

    fn seal(&self, slots: Vec<Slot>) {
        Manifest::seal(&self.launch.kv_dir, self.origin(), slots).unwrap();
    }

    fn seal_two(&self) {
        let dir = &self.launch.kv_dir;
        self.seal(vec![saved(dir, 0, 100), saved(dir, 3, 200)]);
    }

    fn prove(&self) -> manifest::Proven {
        manifest::prove(&self.launch.kv_dir, &self.origin())
    }

    fn files(&self) -> usize {
        fs::read_dir(&self.launch.kv_dir).unwrap().count()
    }
}

#[test]
fn whole_snapshot_of_the_same_model_is_believed() {
    let bench = bench();
    assert!(bench.prove().refused.is_none());
    bench.seal_two();
    let proven = bench.prove();
    let ids: Vec<_> = proven.slots.iter().map(|slot| slot.id).collect();
    assert_eq!((ids.as_slice(), proven.refused), (&[0, 3][..], None));
}

#[test]
fn nobody_else_can_read_what_clients_said() {
    let mode = fs::metadata(&bench().launch.kv_dir)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn damaged_file_is_removed_and_the_others_stay() {
    let spoil: [fn(&Path); 4] = [
        |file| fs::write(file, [3; 100]).unwrap(),
        |file| fs::write(file, [4; 200]).unwrap(),
        |file| fs::remove_file(file).unwrap(),
        |file| {
            let copy = file.with_extension("copy");
            fs::rename(file, &copy).unwrap();
            symlink(copy, file).unwrap();
        },
    ];
    for spoil in spoil {
        let bench = bench();
        bench.seal_two();
        let file = bench.launch.kv_dir.join(Slot::file(3));
        spoil(&file);
        let proven = bench.prove();
        let ids: Vec<_> = proven.slots.iter().map(|slot| slot.id).collect();
        assert_eq!(ids, [0]);
        assert_eq!(proven.refused.unwrap(), "the file of slot 3 is damaged");
        assert!(fs::symlink_metadata(file).is_err());
    }
}

#[test]
fn snapshot_of_anything_else_is_refused_and_removed() {
    type Change = fn(&mut Bench);
    let change: [(Change, &str); 4] = [
        (
            |bench| fs::write(bench.dir.path().join("m.gguf"), b"GGUF and othermodel").unwrap(),
            "it was saved of another model file",
        ),
        (
            |bench| bench.launch.build = "2".to_owned(),
            "it was saved by another build of the engine",
        ),
        (
            |bench| bench.launch.flags.max_model_len = Some(4096),
            "it was saved under other arguments",
        ),
        (
            |bench| {
                fs::write(bench.launch.kv_dir.join("manifest.json"), b"{\"version\":1").unwrap();
            },
            "the manifest can't be read",
        ),
    ];
    for (change, reason) in change {
        let mut bench = bench();
        bench.seal_two();
        change(&mut bench);
        let proven = bench.prove();
        assert!(proven.slots.is_empty());
        assert_eq!(proven.refused.as_deref(), Some(reason));
        assert_eq!(bench.files(), 0);
    }
}

#[test]
fn slots_without_a_manifest_do_not_count() {
    let bench = bench();
    saved(&bench.launch.kv_dir, 0, 100);
    assert!(bench.prove().slots.is_empty());
}

#[test]
fn longest_slots_stay_within_the_models_budget() {
    let bench = bench();
    let slots = [100, 300, 200].iter().zip(0..);
    let slots = slots.map(|(bytes, id)| saved(&bench.launch.kv_dir, id, *bytes));
    let (keep, drop) = budget::divide(slots.collect(), 450);
    let ids = |slots: Vec<Slot>| slots.iter().map(|slot| slot.id).collect::<Vec<_>>();
    assert_eq!((ids(keep), ids(drop)), (vec![1, 0], vec![2]));
}

#[test]
fn oldest_and_cheapest_go_first_where_the_node_is_full() {
    let bench = bench();
    let root = bench.dir.path().join("kv");
    let dirs = ["old", "newer", "m"].map(|name| root.join(name));
    for (age, dir) in dirs.iter().enumerate() {
        manifest::make_private(dir).unwrap();
        let slots = vec![saved(dir, 0, 300), saved(dir, 1, 100)];
        Manifest::seal(dir, bench.origin(), slots).unwrap();
        let mut manifest = Manifest::read(dir).unwrap();
        manifest.saved_at = age as u64;
        manifest.write(dir).unwrap();
    }
    let left = || {
        let slots = |dir: &PathBuf| Manifest::read(dir).unwrap().slots.len();
        [slots(&dirs[0]), slots(&dirs[1]), slots(&dirs[2])]
    };
    budget::shrink(&dirs[2], 1200).unwrap();
    assert_eq!(left(), [2, 2, 2]);
    budget::shrink(&dirs[2], 1100).unwrap();
    assert_eq!(left(), [1, 2, 2]);
    assert!(dirs[0].join(Slot::file(0)).exists() && !dirs[0].join(Slot::file(1)).exists());
    budget::shrink(&dirs[2], 700).unwrap();
    assert_eq!(left(), [0, 1, 2]);
}

#[test]
fn short_and_cheap_slots_are_not_worth_a_file() {
    let slot = |tokens, seconds| Slot {
        id: 0,
        tokens,
        bytes: 0,
        checksum: 0,
        seconds,
    };
    assert!(is_worth_it(&slot(1000, 0.02), 0.01));
    assert!(!is_worth_it(&slot(1000, 6.0), 0.01));
    assert!(!is_worth_it(&slot(10, 0.0), 0.01));
}
