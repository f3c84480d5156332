"""Other libraries through their public interface, one file each; a library that is not installed is skipped."""
