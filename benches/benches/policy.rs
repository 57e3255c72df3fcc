//! .
fn main() {
    divan::main();
}
