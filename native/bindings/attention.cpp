// Attention alone, for its tests: one sequence, one layer.
#include "core/attention.h"

#include <nanobind/stl/string.h>

#include <vector>

#include "bindings/arrays.h"
#include "bindings/decoder.h"
#include "core/isa.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace trimtab;

namespace {

ModelShape one_layer(const ConstArray<float, 3>& query, const ConstArray<float, 3>& keys,
                     int64_t window, double softcap, double scale, KVFormat format) {
  ModelShape shape;
  shape.num_heads = static_cast<int64_t>(query.shape(1));
  shape.num_kv_heads = static_cast<int64_t>(keys.shape(1));
  shape.head_dim = static_cast<int64_t>(query.shape(2));
  shape.layers = {LayerShape{window, 0}};
  shape.attention_softcap = softcap;
  shape.attention_scale = scale;
  shape.kv_format = format;
  return shape;
}

// The last rows of a sequence attend to all of it, through a cache with the given block table.
nb::object paged_attention(const ConstArray<float, 3>& query, const ConstArray<float, 3>& keys,
                           const ConstArray<float, 3>& values,
                           const ConstArray<int32_t, 1>& block_ids, int64_t num_blocks,
                           int64_t window, double softcap, double scale, const std::string& format,
                           const std::string& isa, int threads) {
  const ModelShape shape = one_layer(query, keys, window, softcap, scale, kv_format(format));
  const LayerKernels& kernels = kernel_table(select_isa(isa)).layers;
  const auto rows = static_cast<int64_t>(query.shape(0));
  const auto tokens = static_cast<int64_t>(keys.shape(0));
  const int64_t dim = shape.head_dim;
  KVCache cache(shape.kv_format, dim, shape.num_kv_heads, 1, num_blocks);
  std::vector<int32_t> token_ids(rows), positions(rows);
  for (int64_t i = 0; i < rows; ++i) positions[i] = static_cast<int32_t>(tokens - rows + i);
  const int32_t seq_starts[] = {0, static_cast<int32_t>(rows)};
  const int32_t block_starts[] = {0, static_cast<int32_t>(block_ids.shape(0))};
  StepInput step;
  step.token_ids = token_ids.data();
  step.positions = positions.data();
  step.num_rows = rows;
  step.seq_starts = seq_starts;
  step.block_starts = block_starts;
  step.num_seqs = 1;
  step.block_ids = block_ids.data();
  step.num_block_ids = static_cast<int64_t>(block_ids.shape(0));
  StepValidator(1, num_blocks).check(step);
  for (int64_t token = 0; token < tokens; ++token)
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const int64_t offset = (token * shape.num_kv_heads + head) * dim;
      const int64_t block = block_ids.data()[token / kBlockTokens];
      kernels.write_kv(cache.tile(), cache.tiles(0, head) + block * cache.block_stride(),
                       token % kBlockTokens, keys.data() + offset, values.data() + offset);
    }
  const int64_t stride = shape.query_size();
  OwnedArray<float> out(rows * stride);
  ThreadPool pool(threads);
  AttentionPlan plan(kernels, shape, threads, num_blocks);
  plan.build(step);
  const AttentionPlan::Arrays arrays{step, cache, query.data(), stride, out.data(), stride};
  const int64_t phases[] = {plan.num_items(), plan.num_merges()};
  pool.run(phases, 2, [&](int64_t phase, int64_t chunk, int thread) {
    if (phase == 0)
      plan.run_item(arrays, 0, chunk, thread);
    else
      plan.run_merge(arrays, 0, chunk, thread);
  });
  return out.release({query.shape(0), query.shape(1), query.shape(2)});
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("paged_attention", &paged_attention, "query"_a.noconvert(), "keys"_a.noconvert(),
        "values"_a.noconvert(), "block_ids"_a.noconvert(), "num_blocks"_a, "window"_a = 0,
        "softcap"_a = 0.0, "scale"_a = 1.0, "kv_cache"_a = "f32", "isa"_a = "", "threads"_a = 1,
        "Attention of query [rows, heads, dim], the last rows of a sequence with the given keys "
        "and values [tokens, kv heads, dim]; returns [rows, heads, dim].");
}
