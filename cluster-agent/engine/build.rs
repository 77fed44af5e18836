//! Arranges the released program: see `build/layout.rs`.

#[path = "build/layout.rs"]
mod layout;

fn main() {
    layout::arrange("build/order.txt");
}
