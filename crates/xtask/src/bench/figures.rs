//! Medians with their spread, and numbers as people read them.

/// Lowest, middle and highest of some numbers.
pub(crate) fn median(numbers: &mut [f64]) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    let middle = if n % 2 == 1 { numbers[n / 2] } else { (numbers[n / 2 - 1] + numbers[n / 2]) / 2.0 };
    (numbers[0], middle, numbers[n - 1])
}

/// What came out in the rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) middle: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of numbers of which there is at least one.
    pub(super) fn of(numbers: &[f64]) -> Spread {
        let (low, middle, high) = median(&mut numbers.to_vec());
        Spread { low, middle, high }
    }

    /// The same in another unit.
    pub(super) fn times(self, factor: f64) -> Spread {
        Spread { low: self.low * factor, middle: self.middle * factor, high: self.high * factor }
    }
}

/// The numbers of each cell of a table, round by round.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    columns: usize,
    cells: Vec<Vec<f64>>,
}

impl Rounds {
    pub(super) fn new(rows: usize, columns: usize) -> Rounds {
        Rounds { columns, cells: vec![Vec::new(); rows * columns] }
    }

    pub(super) fn push(&mut self, row: usize, column: usize, number: f64) {
        self.cells[row * self.columns + column].push(number);
    }

    /// A number for each column.
    pub(super) fn push_row(&mut self, row: usize, numbers: impl IntoIterator<Item = f64>) {
        numbers.into_iter().enumerate().for_each(|(column, number)| self.push(row, column, number));
    }

    /// What is in each column.
    pub(super) fn spreads(&self, row: usize) -> Vec<Spread> {
        (0..self.columns).map(|column| self.spread(row, column)).collect()
    }

    pub(super) fn spread(&self, row: usize, column: usize) -> Spread {
        Spread::of(&self.cells[row * self.columns + column])
    }
}

/// The geometric mean, which alone is fair to ratios.
pub(super) fn geometric_mean(ratios: &[f64]) -> f64 {
    let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
    (logarithms / ratios.len() as f64).exp()
}

/// Thousands, with one digit after the point.
pub(super) fn thousands(rate: f64) -> String {
    format!("{:.1} k", rate / 1e3)
}

/// Three digits that mean something, for numbers whose size is not known before.
pub(super) fn digits(number: f64) -> String {
    match number {
        n if n >= 99.95 => format!("{n:.0}"),
        n if n >= 9.995 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_few_and_of_many() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
    }

    #[test]
    fn cells_do_not_mix() {
        let mut rounds = Rounds::new(2, 2);
        for (n, (row, column)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
            for round in 0..3 {
                rounds.push(row, column, (10 * n + round) as f64);
            }
        }
        assert_eq!(rounds.spread(1, 0), Spread { low: 20.0, middle: 21.0, high: 22.0 });
        assert_eq!(rounds.spread(0, 1).times(2.0), Spread { low: 20.0, middle: 22.0, high: 24.0 });
    }

    #[test]
    fn ratios_that_cancel_out_mean_one() {
        assert!((geometric_mean(&[0.5, 2.0]) - 1.0).abs() < 1e-9);
        assert!((geometric_mean(&[2.0, 2.0, 2.0]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_as_they_are_read() {
        assert_eq!([0.123, 9.999, 12.34, 99.96, 1234.5].map(digits), ["0.12", "10.0", "12.3", "100", "1234"]);
        assert_eq!(thousands(12_345.0), "12.3 k");
    }
}
