//! Which folder may import which: the order of the layers, kept by reading the sources.
//!
//! Cargo keeps the direction between the crates (policy knows no actors, actors no HTTP); this test
//! keeps it between the folders of each. `cargo test -p kvwarden-integration --test layers -- --nocapture`
//! prints the folders with what they import; `KVWARDEN_TREE=DIR` reads another checkout.
#![expect(
    clippy::print_stdout,
    reason = "whoever asks for it sees the folders and what they import"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, path,
    path::PathBuf,
};

use kvwarden_integration::workspace;
use syn::{Attribute, Item, ItemMod, ItemUse, Path, UseTree, visit::Visit};

/// From the top down: a layer may import the ones below it, and the modules within one layer each
/// other.
type Layers = &'static [&'static [&'static str]];

const KVWARDEN: Layers = &[
    &["cli"],
    &["lab"],
    &["serve"],
    &["http"],
    &["metrics"],
    &["journal"],
    &["install"],
    &["weights"],
    &["config"],
    &["shim"],
    &["sim"],
    &["layout"],
    &["panic"],
];

const ACTORS: Layers = &[
    &["overview"],
    // The actors and what they say to each other: they know each other by nature.
    &[
        "gpu", "ledger", "model", "observer", "protocol", "router", "tenant", "ticket", "vitals",
    ],
    &["process"],
    &["engine"],
    &["device"],
    &["files"],
];

const POLICY: Layers = &[
    &["simulation"],
    &["residency"],
    &["lifecycle"],
    &["scheduling"],
    &["stall"],
    &["startup"],
    &["routing"],
    &["backoff"],
    &["failure"],
    &["cost"],
    &["tier"],
    &["quota"],
    &["bucket"],
    &["id"],
];

/// Every import between the modules at the top of a crate.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn folders_of_the_binary_import_downwards_only() {
    import_downwards_only("src", KVWARDEN);
}

#[test]
fn folders_of_the_actors_import_downwards_only() {
    import_downwards_only("actors/src", ACTORS);
}

#[test]
fn folders_of_the_policy_import_downwards_only() {
    import_downwards_only("actors/policy/src", POLICY);
}

fn import_downwards_only(root: &str, layers: Layers) {
    let tree = std::env::var_os("KVWARDEN_TREE").map(PathBuf::from);
    let root = tree.as_deref().unwrap_or(workspace()).join(root);
    let imports = imports(&root);
    let height = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let mut upwards = Vec::new();
    let mut unknown = Vec::new();
    for (from, to) in &imports {
        println!(
            "{from} > {}",
            Vec::from_iter(to.iter().map(String::as_str)).join(" ")
        );
        match height(from) {
            None => unknown.push(from),
            Some(above) => upwards.extend(
                to.iter()
                    .filter(|to| height(to).is_some_and(|below| below < above))
                    .map(|to| format!("{from} > {to}")),
            ),
        }
    }
    let arrows: usize = imports.values().map(BTreeSet::len).sum();
    println!(
        "{}: {} modules, {arrows} arrows, {} upwards",
        root.display(),
        imports.len(),
        upwards.len()
    );
    assert!(unknown.is_empty(), "in no layer: {unknown:?}");
    assert!(upwards.is_empty(), "imports that run upwards: {upwards:#?}");
}

fn imports(root: &path::Path) -> Imports {
    let mut all = Imports::new();
    for file in sources(root) {
        let inside = file.strip_prefix(root).expect("a source below the root");
        let mut module: Vec<String> = inside
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        // The crate's own root wires everything together.
        if matches!(module[0].as_str(), "lib" | "main") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source is read");
        let parsed = syn::parse_file(&text).expect("a source that compiles");
        let from = module[0].clone();
        let mut found = Found {
            module,
            ..Found::default()
        };
        found.visit_file(&parsed);
        found.to.remove(&from);
        all.entry(from).or_default().append(&mut found.to);
    }
    // What the root exports again stands for the module that it is from; its other items are no layer.
    let exports = exports(root);
    let known: BTreeSet<_> = all.keys().cloned().collect();
    for (from, to) in &mut all {
        let named = std::mem::take(to).into_iter();
        let meant = named.map(|name| exports.get(&name).cloned().unwrap_or(name));
        to.extend(meant.filter(|module| module != from && known.contains(module)));
    }
    all
}

/// The names that the crate's root exports again, each with the module that it is from.
fn exports(root: &path::Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root.join("lib.rs")).expect("a crate's root");
    let parsed = syn::parse_file(&text).expect("a root that compiles");
    let mut all = BTreeMap::new();
    for item in parsed.items {
        if let Item::Use(ItemUse {
            tree: UseTree::Path(module),
            ..
        }) = item
        {
            let mut found = Found::default();
            found.note_tree(&module.tree, &mut vec!["crate".to_owned()]);
            all.extend(
                found
                    .to
                    .into_iter()
                    .map(|name| (name, module.ident.to_string())),
            );
        }
    }
    all
}

/// The sources below a folder, without tests and without crates of their own.
fn sources(root: &path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).expect("a folder of sources");
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if path.is_dir() && name != "tests" && !path.join("Cargo.toml").exists() {
            all.extend(sources(&path));
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            all.push(path);
        }
    }
    all
}

/// The modules at the top of the crate that a file names.
#[derive(Default)]
struct Found {
    module: Vec<String>,
    to: BTreeSet<String>,
}

impl Found {
    /// Notes the top module of a path that this file names.
    fn note(&mut self, path: &[String]) {
        let ups = path.iter().take_while(|step| *step == "super").count();
        let base = match path.first().map(String::as_str) {
            Some("crate") => &path[1..],
            Some("super") if ups == self.module.len() => &path[ups..],
            Some("super") => &self.module[..1],
            _ => return,
        };
        self.to.extend(base.first().cloned());
    }

    fn note_tree(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        let (step, rest) = match tree {
            UseTree::Path(path) => (path.ident.to_string(), Some(&*path.tree)),
            UseTree::Name(name) => (name.ident.to_string(), None),
            UseTree::Rename(renamed) => (renamed.ident.to_string(), None),
            UseTree::Glob(_) => ("*".to_owned(), None),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.note_tree(tree, path);
                }
                return;
            }
        };
        path.push(step);
        match rest {
            Some(tree) => self.note_tree(tree, path),
            None => self.note(path),
        }
        path.pop();
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let is_test = |attribute: &Attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<Path>()
                    .is_ok_and(|path| path.is_ident("test"))
        };
        if module.content.is_none() || module.attrs.iter().any(is_test) {
            return;
        }
        self.module.push(module.ident.to_string());
        syn::visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let steps: Vec<_> = path
            .segments
            .iter()
            .map(|step| step.ident.to_string())
            .collect();
        self.note(&steps);
        syn::visit::visit_path(self, path);
    }
}
