//! What the modules of a folder import of each other, read from the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, File, Item, ItemMod, ItemUse, UseTree, visit::Visit};

/// Each module of a folder, with those beside it that it names. The folder's own `mod.rs` or `lib.rs`
/// wires them together and is none of them.
pub(crate) fn imports(crate_root: &Path, folder: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let depth = folder.len();
    let is_inside = |path: &[String]| path.len() > depth && path[..depth] == *folder;
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(&crate_root.join(folder.join("/"))) {
        let module = module_of(&file, crate_root);
        if !is_inside(&module) {
            continue;
        }
        let from = module[depth].clone();
        let named = Named::by(&parse(&file), module).paths.into_iter();
        let beside = named.filter(|path| is_inside(path));
        all.entry(from)
            .or_default()
            .extend(beside.map(|mut path| path.swap_remove(depth)));
    }
    // What the root exports again stands for the module that it is from; its other items are no module.
    let exports = exports(crate_root, folder);
    let known: BTreeSet<_> = all.keys().cloned().collect();
    for (from, to) in &mut all {
        let named = std::mem::take(to).into_iter();
        let meant = named.map(|name| exports.get(&name).cloned().unwrap_or(name));
        to.extend(meant.filter(|module| module != from && known.contains(module)));
    }
    all
}

/// The names that the folder's root exports again, each with the module that it is from.
fn exports(crate_root: &Path, folder: &[&str]) -> BTreeMap<String, String> {
    let folder = crate_root.join(folder.join("/"));
    let roots = ["lib.rs", "mod.rs"].map(|root| folder.join(root));
    let mut all = BTreeMap::new();
    for root in roots.iter().filter(|root| root.exists()) {
        for item in parse(root).items {
            let Item::Use(ItemUse { tree, .. }) = item else {
                continue;
            };
            let mut named = Named::default();
            named.note_tree(&tree, &mut vec!["crate".to_owned()]);
            let paths = named.paths.into_iter();
            all.extend(paths.filter_map(|path| {
                let path: Vec<_> = path.into_iter().filter(|step| step != "self").collect();
                Some((path.last()?.clone(), path.first()?.clone()))
            }));
        }
    }
    all
}

/// The sources below a folder, without tests and without crates of their own.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
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

fn parse(file: &Path) -> File {
    let text = fs::read_to_string(file).expect("a source is read");
    syn::parse_file(&text).expect("a source that compiles")
}

/// The path of a file's module; none for the root of the crate.
fn module_of(file: &Path, crate_root: &Path) -> Vec<String> {
    let inside = file
        .strip_prefix(crate_root)
        .expect("a source of the crate");
    let mut module: Vec<String> = inside
        .with_extension("")
        .iter()
        .map(|step| step.to_string_lossy().into_owned())
        .collect();
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// The paths of its own crate that a file names, from the crate's root.
#[derive(Default)]
struct Named {
    module: Vec<String>,
    paths: BTreeSet<Vec<String>>,
}

impl Named {
    fn by(file: &File, module: Vec<String>) -> Self {
        let mut named = Self {
            module,
            ..Self::default()
        };
        named.visit_file(file);
        named
    }

    fn note(&mut self, path: &[String]) {
        let ups = path.iter().take_while(|step| *step == "super").count();
        let base = match path.first().map(String::as_str) {
            Some("crate") => &[],
            Some("super") => &self.module[..self.module.len().saturating_sub(ups)],
            _ => return,
        };
        let _ = self.paths.insert([base, &path[ups.max(1)..]].concat());
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

impl<'ast> Visit<'ast> for Named {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let is_test = |attribute: &Attribute| {
            let condition = attribute.parse_args::<syn::Path>();
            attribute.path().is_ident("cfg") && condition.is_ok_and(|path| path.is_ident("test"))
        };
        if module.attrs.iter().any(is_test) {
            return;
        }
        self.module.push(module.ident.to_string());
        syn::visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let steps = path.segments.iter();
        self.note(&steps.map(|step| step.ident.to_string()).collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }
}
