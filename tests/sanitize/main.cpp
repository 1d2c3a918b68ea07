// Runs every case on every thread of several callers at once, and compares what they fill with a dense sum in double
// and, bit for bit, with what one thread fills. `harness race` lets two callers fill one array, which a thread
// sanitizer has to see.
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>
#include <stdexcept>
#include <thread>

#include "cases.h"
#include "threads.h"

namespace surm::sanitize {
namespace {

constexpr int kCallers = 3, kThreads = 3;

using Results = std::vector<std::vector<Array>>;  // arrays of every case

std::vector<Case> all_cases() {
  std::vector<Case> cases = grid_cases();
  for (const auto make_cases : {ldr_cases, kronecker_cases, elementwise_cases}) {
    for (Case& one : make_cases()) cases.push_back(std::move(one));
  }
  return cases;
}

std::vector<Array> arrays_of(const Case& one) {
  std::vector<Array> arrays;
  for (const Output& output : one.outputs) {
    arrays.emplace_back(output.type, static_cast<int64_t>(output.exact.size()));
  }
  return arrays;
}

Results new_results(const std::vector<Case>& cases) {
  Results results;
  for (const Case& one : cases) results.push_back(arrays_of(one));
  return results;
}

// Beginning with a case, so that callers run other ones at the same time, and all of them in the end.
void run(const std::vector<Case>& cases, size_t first, const cpu::ParallelFor& parallel, const Results& results) {
  for (size_t k = 0; k < cases.size(); ++k) {
    const size_t index = (first + k) % cases.size();
    cases[index].fill(results[index], parallel);
  }
}

// Nothing has been called before, so that they also make what is kept at the same time.
std::vector<Results> run_at_once(const std::vector<Case>& cases) {
  std::vector<Results> all;
  for (int caller = 0; caller < kCallers; ++caller) all.push_back(new_results(cases));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    const size_t first = caller / 2 * cases.size() / kCallers;  // the first two begin with the same
    callers.emplace_back([&, caller, first] { run(cases, first, Threads(kThreads), all[caller]); });
  }
  for (std::thread& caller : callers) caller.join();
  return all;
}

void check(const Case& one, const std::vector<Array>& alone, const std::vector<Array>& at_once) {
  for (size_t i = 0; i < alone.size(); ++i) {
    const std::string name = one.name + ": " + one.outputs[i].name;
    check_error(name, alone[i], one.outputs[i].exact);
    if (std::memcmp(alone[i].data(), at_once[i].data(), alone[i].bytes()) != 0) {
      throw std::runtime_error(name + " is another on several threads");
    }
  }
}

void check_everything() {
  const std::vector<Case> cases = all_cases();
  const std::vector<Results> at_once = run_at_once(cases);
  const Results alone = new_results(cases);
  run(cases, 0, in_one_part, alone);
  for (size_t index = 0; index < cases.size(); ++index) {
    for (const Results& results : at_once) check(cases[index], alone[index], results[index]);
  }
  std::printf("%zu cases, %d callers of %d threads\n", cases.size(), kCallers, kThreads);
}

// Of kernels that take no lock, which would order the calls where one ends before the other begins.
void plant_race() {
  const Case one = kronecker_cases().back();
  const std::vector<Array> shared = arrays_of(one);
  std::thread other([&] { one.fill(shared, in_one_part); });
  one.fill(shared, in_one_part);
  other.join();
}

}  // namespace
}  // namespace surm::sanitize

int main(int count, char** arguments) try {
  if (count > 1 && std::strcmp(arguments[1], "race") == 0) {
    surm::sanitize::plant_race();
  } else {
    surm::sanitize::check_everything();
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
