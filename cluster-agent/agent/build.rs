//! Arranges the released program: see `../engine/build/layout.rs`.

#[path = "../engine/build/layout.rs"]
mod layout;

fn main() {
    layout::arrange("build/order.txt");
}
