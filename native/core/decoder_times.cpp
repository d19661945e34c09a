#include "core/decoder.h"

namespace trimtab {

void Decoder::begin_times() {
  phase_began_.clear();
  if (!timed_) return;
  phase_began_.resize(phases_.size() + 1);
  for (Local& local : locals_) local.preparing = local.rotating = 0;
}

std::map<std::string, double> Decoder::times() const {
  const struct {
    decltype(Phase::run) run;
    const char* name;
  } names[] = {{&Decoder::embed, "embedding"},      {&Decoder::embed_draft, "embedding"},
               {&Decoder::join_inputs, "norms"},    {&Decoder::prepare, "inputs"},
               {&Decoder::multiply, "projections"}, {&Decoder::rotate, "rotation"},
               {&Decoder::attend, "attention"},     {&Decoder::attend_sequence, "attention"},
               {&Decoder::merge, "attention"},      {&Decoder::gate, "projections"},
               {&Decoder::add_normed, "norms"},     {&Decoder::sample, "sampling"},
               {&Decoder::give_hidden, "norms"},    {&Decoder::give_features, "norms"}};
  std::map<std::string, double> seconds;
  if (phase_began_.empty()) return seconds;
  seconds["program"] = 1e-9 * static_cast<double>(phase_began_.front() - began_);
  for (size_t i = 0; i < phases_.size(); ++i) {
    const char* name = nullptr;
    for (const auto& entry : names)
      if (entry.run == phases_[i].run) name = entry.name;
    if (phases_[i].projection.matrix == &model_.lm_head && phases_[i].run == &Decoder::multiply)
      name = "head";
    seconds[name] += 1e-9 * static_cast<double>(phase_began_[i + 1] - phase_began_[i]);
  }
  const double each = 1e-9 / static_cast<double>(locals_.size());
  for (const Local& local : locals_) {
    const double preparing = each * static_cast<double>(local.preparing);
    const double rotating = each * static_cast<double>(local.rotating);
    seconds["inputs"] += preparing;
    seconds["projections"] -= preparing;
    seconds["rotation"] += rotating;
    seconds["attention"] -= rotating;
  }
  return seconds;
}

}  // namespace trimtab
