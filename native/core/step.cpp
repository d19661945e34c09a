#include "core/step.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/layer_kernels.h"

namespace trimtab {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_starts(const char* name, const int32_t* starts, int64_t count, int64_t total,
                  int32_t least) {
  if (starts[0] != 0) refuse(std::string(name) + "[0] must be 0");
  for (int64_t i = 0; i < count; ++i)
    if (int64_t{starts[i + 1]} - starts[i] < least)
      refuse(std::string(name) + "[" + std::to_string(i + 1) +
             "]=" + std::to_string(starts[i + 1]) + ": every sequence needs at least one entry");
  if (starts[count] != total)
    refuse(std::string(name) + " ends at " + std::to_string(starts[count]) + ", not at " +
           std::to_string(total));
}

void check_rows(const char* name, const int32_t* rows, int64_t count, int64_t total) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t least = i == 0 ? 0 : int64_t{rows[i - 1]} + 1;
    if (rows[i] < least || rows[i] >= total)
      refuse(std::string(name) + "[" + std::to_string(i) + "]=" + std::to_string(rows[i]) +
             ": must ascend and be below " + std::to_string(total));
  }
}

}  // namespace

void StepValidator::check_sequence(const StepInput& step, int64_t seq) {
  const int64_t first = step.seq_starts[seq], last = step.seq_starts[seq + 1];
  const int64_t start = step.positions[first];
  const std::string name = "sequence " + std::to_string(seq) + ": ";
  if (start < 0) refuse(name + "position " + std::to_string(start));
  for (int64_t row = first; row < last; ++row)
    if (step.positions[row] != start + row - first)
      refuse(name + "positions are not consecutive at row " + std::to_string(row));
  const int64_t table = step.block_starts[seq];
  const int64_t blocks = step.block_starts[seq + 1] - table;
  const int64_t end = start + last - first;
  if (blocks * kBlockTokens < end)
    refuse(name + std::to_string(blocks) + " blocks are too few for " + std::to_string(end) +
           " positions");
  for (int64_t i = table; i < table + blocks; ++i)
    if (step.block_ids[i] < 0 || step.block_ids[i] >= num_blocks_)
      refuse(name + "block id " + std::to_string(step.block_ids[i]) + " is outside [0, " +
             std::to_string(num_blocks_) + ")");
}

void StepValidator::check_targets(const StepInput& step) {
  if (step.targets == nullptr) return;
  for (int64_t i = 0; i < step.num_logits; ++i)
    if (step.targets[i] < -1 || step.targets[i] >= vocab_size_)
      refuse("targets[" + std::to_string(i) + "]=" + std::to_string(step.targets[i]) +
             " is outside the vocabulary of " + std::to_string(vocab_size_));
}

void StepValidator::check(const StepInput& step) {
  if (step.num_rows < 1 || step.num_seqs < 1) refuse("a step needs at least one row");
  check_starts("seq_starts", step.seq_starts, step.num_seqs, step.num_rows, 1);
  check_starts("block_starts", step.block_starts, step.num_seqs, step.num_block_ids, 1);
  for (int64_t row = 0; row < step.num_rows; ++row)
    if (step.token_ids[row] < 0 || step.token_ids[row] >= vocab_size_)
      refuse("token_ids[" + std::to_string(row) + "]=" + std::to_string(step.token_ids[row]) +
             " is outside the vocabulary of " + std::to_string(vocab_size_));
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) check_sequence(step, seq);
  check_rows("logit_rows", step.logit_rows, step.num_logits, step.num_rows);
  check_rows("hidden_rows", step.hidden_rows, step.num_hidden, step.num_rows);
  check_targets(step);
  if (step.sampling.rows != step.num_logits)
    refuse("sampling has " + std::to_string(step.sampling.rows) + " rows, logit_rows has " +
           std::to_string(step.num_logits));

  // Last, as it leaves marks: nobody else may write a block that a sequence writes in this step.
  int64_t clash = -1;
  const auto each_written = [&](auto&& visit) {
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      const int64_t first = step.positions[step.seq_starts[seq]] / kBlockTokens;
      const int64_t last = step.positions[step.seq_starts[seq + 1] - 1] / kBlockTokens;
      for (int64_t i = first; i <= last; ++i) visit(step.block_starts[seq] + i);
    }
  };
  each_written([&](int64_t i) {
    int64_t& writer = writer_[step.block_ids[i]];
    if (writer >= 0) clash = step.block_ids[i];
    writer = i;
  });
  each_written([&](int64_t i) { writer_[step.block_ids[i]] = -1; });
  if (clash >= 0) refuse("block " + std::to_string(clash) + " would be written from two places");
}

}  // namespace trimtab
