// The extension module trimtab._native: one bind_* function a file, nothing else here.
#include "bindings/module.h"

NB_MODULE(_native, m) {
  m.doc() = "The native core of trimtab.";
  bind_kernels(m);
  bind_sampler(m);
  bind_decoder(m);
  bind_probe(m);
  bind_lookup(m);
}
