#pragma once

#include "bindings/arrays.h"
#include "bindings/sampling_arrays.h"
#include "core/step.h"

// A StepBatch, held and checked, as the StepInput that the core reads.
class StepArrays {
 public:
  // Keeps the batch's arrays alive until the next call.
  trimtab::StepInput& read(nanobind::handle batch, int64_t vocab) {
    step_.token_ids = token_ids_.read(batch).data();
    step_.positions = positions_.read(batch).data();
    step_.num_rows = token_ids_.length();
    step_.seq_starts = seq_starts_.read(batch).data();
    step_.block_starts = block_starts_.read(batch).data();
    step_.num_seqs = seq_starts_.length() - 1;
    step_.block_ids = block_ids_.read(batch).data();
    step_.num_block_ids = block_ids_.length();
    step_.logit_rows = logit_rows_.read(batch).data();
    step_.num_logits = logit_rows_.length();
    step_.sampling =
        sampling_.read(nanobind::getattr(batch, sampling_name_), step_.num_logits, vocab);
    if (positions_.length() != step_.num_rows)
      throw std::invalid_argument("positions: one for each of token_ids");
    if (block_starts_.length() != seq_starts_.length())
      throw std::invalid_argument("block_starts: as long as seq_starts");
    step_.targets = nullptr;
    if (!nanobind::getattr(batch, targets_name_).is_none()) {
      step_.targets = targets_.read(batch).data();
      if (targets_.length() != step_.num_logits)
        throw std::invalid_argument("targets: one for each of logit_rows");
    }
    step_.num_hidden = 0;
    if (!nanobind::getattr(batch, hidden_rows_name_).is_none()) {
      step_.hidden_rows = hidden_rows_.read(batch).data();
      step_.num_hidden = hidden_rows_.length();
    }
    step_.features = nanobind::getattr(batch, features_name_).is(nanobind::handle(Py_True));
    return step_;
  }

  int64_t top_width() const { return sampling_.top_width(); }
  bool wants_logprobs() const { return sampling_.wants_logprobs(); }

 private:
  HeldArray<int32_t, 1> token_ids_{"token_ids"}, positions_{"positions"}, seq_starts_{"seq_starts"},
      block_starts_{"block_starts"}, block_ids_{"block_ids"}, logit_rows_{"logit_rows"},
      targets_{"targets"}, hidden_rows_{"hidden_rows"};
  nanobind::str sampling_name_{"sampling"}, targets_name_{"targets"},
      hidden_rows_name_{"hidden_rows"}, features_name_{"features"};
  SamplingArrays sampling_;
  trimtab::StepInput step_;
};
