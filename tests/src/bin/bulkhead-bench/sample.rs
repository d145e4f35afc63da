//! Statistics of measurements: percentiles and medians, nothing clever.

use std::time::Duration;

/// The value below or at which `percent` of the sorted samples are (nearest rank); 0 without samples.
pub fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    // Sample counts are far below 2^52, and the rank is positive and at most the count.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (percent / 100.0 * samples.len() as f64).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle of the samples.
pub fn median(samples: &mut [f64]) -> f64 {
    percentile(samples, 50.0)
}

/// Milliseconds.
pub fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_of_the_nearest_rank() {
        let mut samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 50.0).to_bits(), 50.0_f64.to_bits());
        assert_eq!(percentile(&mut samples, 99.0).to_bits(), 99.0_f64.to_bits());
        assert_eq!(percentile(&mut samples, 100.0).to_bits(), 100.0_f64.to_bits());
        assert_eq!(median(&mut [7.0]).to_bits(), 7.0_f64.to_bits());
        assert_eq!(median(&mut []).to_bits(), 0.0_f64.to_bits());
    }
}
