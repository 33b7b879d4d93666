// Places where a test has a server killed. They are in a build with TABLEBAY_FAILPOINTS alone; elsewhere not even their
// names are.
#pragma once

#ifdef TABLEBAY_FAILPOINTS

namespace tablebay {

// The process is killed here if TABLEBAY_FAILPOINT is NAME:PATH with this name, and a file PATH is there: who renames
// it to PATH.hit, first of all processes, dies. So each file is for one death.
void Failpoint(const char* name);

}  // namespace tablebay

#define TABLEBAY_FAILPOINT(name) ::tablebay::Failpoint(name)
#else
#define TABLEBAY_FAILPOINT(name) static_cast<void>(0)
#endif
