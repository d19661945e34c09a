#include "kernels/layer_functions.h"

namespace trimtab::TRIMTAB_ISA {

LayerKernels layer_kernels() {
  return {
      .embed = embed,
      .rms_norm = rms_norm,
      .add = add_rows,
      .rope = rope,
      .write_kv = write_kv,
      .attend = attend,
      .merge = merge,
      .finish = finish,
      .gate = gate,
      .softcap = softcap,
  };
}

}  // namespace trimtab::TRIMTAB_ISA
