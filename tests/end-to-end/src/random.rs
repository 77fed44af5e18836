//! Randomness that can be had again: a failing test names its seed.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `ROADSTEAD_TEST_SEED`, else from the process's number; the seed is printed.
    #[must_use]
    pub fn from_environment(what: &str) -> Self {
        let given = std::env::var("ROADSTEAD_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("{what}: seed {seed} (ROADSTEAD_TEST_SEED={seed} runs it again)");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0, 1, … `end` − 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(all.len() as u64)).unwrap_or(0);
        all.get(at).expect("something to choose from")
    }

    /// All of them, in some order (Fisher and Yates).
    pub fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut deck = all.to_vec();
        for last in (1..deck.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            deck.swap(last, other);
        }
        deck
    }
}
