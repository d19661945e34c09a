// Linked into trimtab_core.
namespace trimtab {}
