"""Other libraries, called through their public interface, one file each; those not installed are skipped."""
