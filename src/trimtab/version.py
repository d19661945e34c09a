"""The version of trimtab, for those inside the package; others read `trimtab.__version__`."""

VERSION = "0.1.0"
