// The residual stream of some layers, as draft heads read it.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/decoder.h"

namespace trimtab {

void Decoder::set_feature_layers(std::vector<int64_t> layers) {
  const auto count = static_cast<int64_t>(model_.layers.size());
  for (const int64_t layer : layers)
    if (layer < 0 || layer > count)
      throw std::invalid_argument("feature layer " + std::to_string(layer) + " is outside [0, " +
                                  std::to_string(count) + "]");
  feature_layers_ = std::move(layers);
}

// Before the phases of `layer` are added.
void Decoder::build_features(int64_t layer) {
  Phase phase{};
  phase.run = &Decoder::give_features;
  for (size_t i = 0; i < feature_layers_.size(); ++i) {
    if (feature_layers_[i] != layer) continue;
    phase.first = static_cast<int64_t>(i) * model_.shape.hidden_size;
    add_phase(phase, row_chunks(rows_));
  }
}

void Decoder::give_features(const Phase& phase, int64_t chunk, int) {
  const int64_t size = model_.shape.hidden_size;
  const int64_t last = std::min(rows_, (chunk + 1) * row_grain_);
  for (int64_t row = chunk * row_grain_; row < last; ++row)
    std::memcpy(out_->features + row * num_features() + phase.first,
                residual_.data + row * hidden_stride_, static_cast<size_t>(size) * 4);
}

}  // namespace trimtab
