#include "core/packed_model.h"

#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

namespace trimtab {
namespace {

enum class Presence { required, optional };

// Calls visit(vector, expected size, presence) for every vector of a placed model. ModelType is
// Model or const Model.
template <typename ModelType, typename Visit>
void visit_vectors(ModelType& model, Visit&& visit) {
  const size_t hidden = static_cast<size_t>(model.shape.hidden_size);
  const size_t head = static_cast<size_t>(model.shape.head_dim);
  visit(model.final_norm, hidden, Presence::required);
  visit_matrices(model, [&](auto& matrix, const std::string&) {
    const size_t rows = static_cast<size_t>(matrix.packed.padded_rows);
    visit(matrix.scales, matrix.packed.scaled_rows() ? rows : 0, Presence::required);
    visit(matrix.bias, rows, Presence::optional);
    visit(matrix.columns, static_cast<size_t>(matrix.packed.cols), Presence::optional);
  });
  for (auto& layer : model.layers) {
    for (auto* norm :
         {&layer.attn_norm, &layer.mlp_norm, &layer.post_attn_norm, &layer.post_mlp_norm})
      visit(*norm, hidden, Presence::optional);
    for (auto* norm : {&layer.q_norm, &layer.k_norm}) visit(*norm, head, Presence::optional);
  }
}

[[noreturn]] void refuse() {
  throw std::invalid_argument("the packed file does not hold a model of this shape");
}

void load_vectors(Model& model, std::span<const uint8_t> bytes) {
  const auto take = [&](size_t count) {
    if (count > bytes.size()) refuse();
    const uint8_t* first = bytes.data();
    bytes = bytes.subspan(count);
    return first;
  };
  visit_vectors(model, [&](auto& vector, size_t expected, Presence presence) {
    uint64_t count;
    std::memcpy(&count, take(sizeof count), sizeof count);
    if (count != expected && (count != 0 || presence == Presence::required)) refuse();
    const uint8_t* source = take(count * sizeof vector[0]);
    vector.resize(count);
    if (count != 0) std::memcpy(vector.data(), source, count * sizeof vector[0]);
  });
  if (!bytes.empty()) refuse();
}

void mark_loaded(Model& model) {
  model.embedding_loaded = true;
  visit_matrices(model, [](Matrix& matrix, const std::string&) { matrix.loaded = true; });
}

}  // namespace

std::string save_vectors(const Model& model) {
  std::string bytes;
  visit_vectors(model, [&](const auto& vector, size_t, Presence) {
    const uint64_t count = vector.size();
    bytes.append(reinterpret_cast<const char*>(&count), sizeof count);
    bytes.append(reinterpret_cast<const char*>(vector.data()), count * sizeof vector[0]);
  });
  return bytes;
}

Model map_model(const ModelShape& shape, int descriptor, int64_t file_bytes, int64_t arena_offset,
                int64_t vectors_offset) {
  Model model;
  model.shape = shape;
  if (arena_offset < 0 || arena_offset % 64 != 0 || vectors_offset > file_bytes ||
      vectors_offset - arena_offset != model.arena_bytes())
    refuse();
  Region file = Region::map_file(descriptor, static_cast<size_t>(file_bytes));
  model.place(std::move(file), static_cast<size_t>(arena_offset));
  // All but the embedding table is read at every step; of the table, a row for each token.
  const size_t first = static_cast<size_t>(arena_offset);
  const Matrix& looked_up = model.embedding_matrix;
  const size_t table = model.shape.has_table() ? model.embedding.size()
                       : model.shape.embedding == EmbeddingSource::matrix
                           ? static_cast<size_t>(packed_bytes(looked_up.packed))
                           : 0;
  model.memory.populate(first + table, static_cast<size_t>(file_bytes) - first - table);
  model.memory.read_ahead(first, table);
  load_vectors(model, {model.memory.data() + vectors_offset,
                       static_cast<size_t>(file_bytes - vectors_offset)});
  mark_loaded(model);
  model.check_complete();
  return model;
}

}  // namespace trimtab
