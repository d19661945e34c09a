// Compiled once for each ISA path.
namespace trimtab {}
